"""Update: one iteration's DPO on its pairs, by TRL's DPOTrainer with LoRA or on the language model's own weights.

The reference is the base model in every iteration. The policy goes on from the one before, so that it moves on while
the tie to the base stays (``beta``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image, List
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from sightline_chassis.errors import PreconditionFailed
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig

from sightline_trainer.dpo.callbacks import Begin, FiniteGradient, Progress
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.losses import POVID, check_losses, fold_pairs, trl_losses
from sightline_trainer.dpo.reference import token_logprobs
from sightline_trainer.dpo.saving import save_optimizer, save_policy
from sightline_trainer.dpo.sharing import share
from sightline_trainer.dpo.trainer import FastDPOTrainer
from sightline_trainer.recipe import Recipe


@dataclass(frozen=True)
class Probe:
    """A response with the trainer's own log-probs of its tokens under the new policy, in nats."""

    prompt_id: str
    token_ids: list[int]
    logprobs: list[float]
    prompt: str = ""
    """The user's text, where it is not the dataset's."""
    previous_logprobs: list[float] = field(default_factory=list)
    """The same tokens under the policy that the update began with; empty where it was not asked."""


@dataclass(frozen=True)
class Update:
    """What an update did: its metrics (services/trainer/README.md lists them), and probes of the result."""

    metrics: dict[str, float]
    probes: list[Probe]


def load_policy(model: str | Path, dtype: str) -> Any:
    """A checkpoint. The trainer puts it where it belongs: whole, or under FSDP piece by piece."""
    transformers_logging.disable_progress_bar()
    return AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype))


def make_trainer(
    recipe: Recipe, pairs: Dataset, *, previous: Path | None, work: Path, seed: int, iteration: int = 1
) -> FastDPOTrainer:
    """A DPOTrainer on the base model with an adapter (or weights) that start from ``previous`` or from nothing.

    Raises:
        PreconditionFailed: the previous adapter's tensors do not fit the model, or the losses make no sense.
    """
    torch.set_num_threads(recipe.threads)
    settings = recipe.dpo
    columns = _columns(recipe, pairs)
    check_losses(
        settings.loss,
        margins=settings.margin_scale > 0,
        weights="weight" in columns,
        label_smoothing=settings.label_smoothing,
    )
    full = settings.train == "full"
    arguments = _arguments(recipe, len(pairs), work=work, seed=seed)
    model = load_policy(previous if full and previous else recipe.model, settings.dtype)
    if full and not settings.train_vision:
        for name, parameter in model.base_model.named_parameters():
            parameter.requires_grad_(name.startswith("language_model."))
    processor = AutoProcessor.from_pretrained(recipe.model)
    trainer = FastDPOTrainer(
        model=model,
        ref_model=load_policy(recipe.model, settings.dtype) if full else None,
        args=arguments,
        train_dataset=_rows(pairs),
        processing_class=processor,
        data_collator=PairCollator(processor, columns=columns),
        peft_config=None if full else _lora(recipe),
        losses=dict(settings.loss),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.margin_scale, trainer.povid_betas = settings.margin_scale, settings.povid_betas
    if settings.carry == "optimizer":
        trainer.span = (iteration - 1, recipe.iterations)
    if previous is not None and not full:
        _load_adapter(trainer.model, previous)
    if settings.shared_prefix:
        reference = () if trainer.ref_model is None else (trainer.accelerator.unwrap_model(trainer.ref_model),)
        trainer.data_collator.sharing = share(
            trainer.model, cache_bytes=settings.image_cache_mb << 20, extra_models=reference
        )
    return trainer


def _columns(recipe: Recipe, pairs: Dataset) -> list[str]:
    """Which numbers of a pair the loss needs."""
    weighted = "weight" in pairs.column_names and not set(pairs["weight"]) <= {1.0, None}
    margins = recipe.dpo.margin_scale > 0 and "margin" in pairs.column_names
    return [name for name, used in (("weight", weighted), ("margin", margins)) if used]


def _arguments(recipe: Recipe, pairs: int, *, work: Path, seed: int) -> DPOConfig:
    settings = recipe.dpo
    on_cpu = not torch.cuda.is_available()
    names, weights = trl_losses(settings.loss)
    arguments = DPOConfig(
        output_dir=str(work),
        beta=settings.beta,
        loss_type=names,
        loss_weights=weights,
        label_smoothing=settings.label_smoothing,
        ld_alpha=settings.ld_alpha,
        f_divergence_type=settings.f_divergence,
        discopop_tau=settings.discopop_tau,
        use_weighting=settings.wpo,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=settings.dtype == "bfloat16" and not on_cpu,
        max_length=None,
        remove_unused_columns=False,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="no",
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        seed=seed,
        data_seed=seed,
    )
    together = settings.batch_size * settings.accumulate * arguments.world_size
    # Rounded down: a single step must not have rate 0.
    arguments.warmup_steps = int(settings.warmup_ratio * math.ceil(pairs / together) * settings.epochs)
    return arguments


def _lora(recipe: Recipe) -> LoraConfig:
    lora = recipe.dpo.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def _rows(pairs: Dataset) -> Dataset:
    """The pairs with an id each, their images left encoded until somebody needs the pixels."""
    pairs = pairs.add_column("pair_id", list(range(len(pairs))))
    for name in pairs.column_names:
        if name.endswith("images"):
            pairs = pairs.cast_column(name, List(Image(decode=False)))
    return pairs


def _load_adapter(model: Any, previous: Path) -> None:
    result = set_peft_model_state_dict(model, load_file(previous / "adapter_model.safetensors"))
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise PreconditionFailed(
            f"the adapter at {previous} does not fit the model: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unexpected, such as {[*missing, *result.unexpected_keys][:3]}",
            reason="ADAPTER_MISMATCH",
        )


def probe(trainer: FastDPOTrainer, count: int) -> list[Probe]:
    """The trainer's own log-probs of the first ``count`` chosen responses under the policy as it stands.

    They go through TRL's rows, not the pack: the sampler's arrival check is then a check of the pack as well.
    """
    rows = [trainer.train_dataset[index] for index in range(min(count, len(trainer.train_dataset)))]
    logprobs = []
    for row in rows:
        batch = PairCollator(trainer.data_collator.processor)([row])
        mask = batch["completion_mask"][0, 1:].bool()
        logprobs.append(token_logprobs(trainer, batch)[0].cpu()[mask].tolist())
    return [
        Probe(row["prompt_id"], list(row["chosen_ids"]), values, row["prompt"][0]["content"])
        for row, values in zip(rows, logprobs, strict=True)
    ]


def update(
    recipe: Recipe,
    pairs: Dataset,
    *,
    previous: Path | None,
    adapter: Path,
    work: Path,
    seed: int,
    progress: Callable[[int, int], None],
    iteration: int = 1,
) -> Update:
    """Train on ``pairs`` and save the policy (an adapter, or with ``dpo.train=full`` a checkpoint).

    Args:
        previous: directory of the policy to go on from; None starts at the base model.
        adapter: directory that gets the new policy.
        work: TRL's output directory; the optimiser's state goes there too, where the recipe carries it.
        progress: told (steps done, steps in all); the reference pass counts as the first tenth.
        iteration: from 1; where one schedule spans the run, the place in it.

    Raises:
        InternalError: the loss became NaN or infinite; nothing is saved.
        PreconditionFailed: the pairs, losses or previous policy can't be used, or the shared prefix fails its check.
    """
    if set(recipe.dpo.loss) & set(POVID):
        pairs, _ = fold_pairs(pairs)
    trainer = make_trainer(recipe, pairs, previous=previous, work=work, seed=seed, iteration=iteration)
    carried = work / f"optimizer-{iteration - 1:04d}" if recipe.dpo.carry == "optimizer" else None
    begin = Begin(trainer, lambda done, total: progress(done, 10 * total), optimizer=carried)
    before = _Before(lambda: probe(trainer, recipe.publication.probes))
    told = Progress(lambda done, total: progress(total + 9 * done, 10 * total))
    for callback in (begin, before, FiniteGradient(), told):
        trainer.add_callback(callback)
    trainer.train()
    seconds = time.monotonic() - begin.began
    figures = _metrics(trainer, len(pairs), begin.reference_seconds, seconds)
    save_policy(trainer, adapter)
    if recipe.dpo.carry == "optimizer":
        save_optimizer(trainer, work / f"optimizer-{iteration:04d}")
    after = probe(trainer, recipe.publication.probes)
    return Update(
        figures,
        [replace(new, previous_logprobs=old.logprobs) for new, old in zip(after, before.probes, strict=True)],
    )


class _Before(TrainerCallback):
    """Asks the probes as training begins: of the policy before, with the model where training has put it."""

    def __init__(self, ask: Callable[[], list[Probe]]) -> None:
        self._ask = ask
        self.probes: list[Probe] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.probes = self._ask()


def _metrics(trainer: FastDPOTrainer, pairs: int, reference_seconds: float, seconds: float) -> dict[str, float]:
    """Means over the last quarter of the steps; TRL's own names beside ours."""
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    ours = _tail_means(trainer.figures, ("chosen_logp", "rejected_logp", "margin", "accuracy", "kl_to_reference"))
    theirs = _tail_means(
        history,
        (
            "loss", "grad_norm", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected",
            "logps/chosen", "logps/rejected",
        ),
    )  # fmt: skip
    steps = float(trainer.state.global_step)
    return {
        **{key.replace("/", "_"): value for key, value in theirs.items()},
        **ours,
        "steps": steps,
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "pairs_per_second": pairs * trainer.args.num_train_epochs / max(seconds, 1e-9),
        "shared_prefix": float(trainer.data_collator.sharing is not None),
    }


def _tail_means(entries: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, float]:
    tail = entries[-max(1, len(entries) // 4) :]
    return {
        name: sum(entry[name] for entry in tail) / len(tail) for name in names if all(name in entry for entry in tail)
    }
