"""Results of an update: the policy's files and, if the recipe keeps it, the optimiser's state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sightline_chassis.families.auto import AutoConfig
from transformers import GenerationConfig

from sightline_trainer.dpo.sharded import gathered
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.trainer import FastDPOTrainer

_NOT_POLICY = ("README.md", "training_args.bin")


def save_policy(trainer: FastDPOTrainer, directory: Path) -> None:
    """Write the adapter, or a whole checkpoint: weights, processor, tokenizer, chat template, generation config.

    Every process calls it; sharded weights are gathered, and one process writes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = model is base_of(model)
    if whole:
        _as_it_came(model)
    held = gathered(trainer) if trainer.is_fsdp_enabled else None
    if trainer.accelerator.is_main_process:
        model.save_pretrained(directory, state_dict=held)
    del held
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        if whole:
            trainer.processing_class.save_pretrained(directory)
            model.generation_config.save_pretrained(directory)
        for name in _NOT_POLICY:
            (directory / name).unlink(missing_ok=True)
        for file in directory.iterdir():
            file.chmod(0o644)  # the sampler may run as another user


def _as_it_came(model: Any) -> None:
    """Undo what trainers change of the configs: TRL turns the cache off, transformers puts the tokenizer's special
    tokens there, and would not save the changed generation config of many a checkpoint (a temperature without
    sampling)."""
    source = model.config._name_or_path
    before = AutoConfig.from_pretrained(source)
    if hasattr(before, "use_cache"):
        model.config.use_cache = before.use_cache
    else:
        vars(model.config).pop("use_cache", None)
    ours, theirs = model.config.get_text_config(), before.get_text_config()
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        if hasattr(theirs, name):
            setattr(ours, name, getattr(theirs, name))
    try:
        model.generation_config = GenerationConfig.from_pretrained(source)
    except OSError:  # it has none: its config says the rest
        model.generation_config = GenerationConfig.from_model_config(model.config)


def save_optimizer(trainer: FastDPOTrainer, directory: Path) -> None:
    """Write the optimiser's state, completely or not at all; older ones are deleted."""
    main = trainer.accelerator.is_main_process
    aside = directory.with_name(f".{directory.name}")
    if main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    trainer._save_optimizer_and_scheduler(str(aside))
    trainer.accelerator.wait_for_everyone()
    if main:
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
        for old in sorted(directory.parent.glob("optimizer-*"))[:-2]:
            shutil.rmtree(old, ignore_errors=True)


def load_optimizer(trainer: FastDPOTrainer, directory: Path) -> None:
    """Continue with a saved optimiser state. The schedule remains that of this update, counted from its iteration."""
    schedule = trainer.lr_scheduler.state_dict()
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    trainer._load_optimizer_and_scheduler(str(directory))
    trainer.lr_scheduler.load_state_dict(schedule)
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
