"""Update: one iteration's DPO on its pairs, by TRL's DPOTrainer with LoRA.

The reference is the base model: the same weights with the adapter off, in every iteration. The adapter goes on from
the policy before, so that the policy moves on while the tie to the base stays (``beta``). Reference log-probs are
computed once per pair, not once per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from sightline_chassis.errors import InternalError, PreconditionFailed
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer

from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.recipe import Recipe


@dataclass(frozen=True)
class Probe:
    """A response with the trainer's own log-probs of its tokens under the new policy, in nats."""

    prompt_id: str
    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Update:
    """What an update did: TRL's metrics averaged over the last quarter of the steps, and probes of the result."""

    metrics: dict[str, float]
    probes: list[Probe]


class _Progress(TrainerCallback):
    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step, state.max_steps)


def load_policy(model: str, dtype: str) -> tuple[Any, Any]:
    """The base model (on a GPU if there is one) and its processor."""
    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    return base, AutoProcessor.from_pretrained(model)


def make_trainer(recipe: Recipe, pairs: Dataset, *, previous: Path | None, work: Path, seed: int) -> DPOTrainer:
    """A DPOTrainer on the base model with an adapter that starts from ``previous`` or from nothing.

    Raises:
        PreconditionFailed: the previous adapter's tensors do not fit the model.
    """
    torch.set_num_threads(recipe.threads)
    settings = recipe.dpo
    model, processor = load_policy(recipe.model, settings.dtype)
    on_cpu = not torch.cuda.is_available()
    steps = math.ceil(len(pairs) / (settings.batch_size * settings.accumulate)) * settings.epochs
    arguments = DPOConfig(
        output_dir=str(work),
        beta=settings.beta,
        loss_type=list(settings.loss),
        loss_weights=list(settings.loss.values()),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=int(settings.warmup_ratio * steps),  # rounded down: a single step must not have rate 0
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
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        processing_class=processor,
        data_collator=PairCollator(processor),
        peft_config=LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            lora_dropout=settings.lora.dropout,
            target_modules=settings.lora.target_modules,
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    if previous is not None:
        tensors = load_file(previous / "adapter_model.safetensors")
        result = set_peft_model_state_dict(trainer.model, tensors)
        missing = [key for key in result.missing_keys if "lora_" in key]
        if missing or result.unexpected_keys:
            raise PreconditionFailed(
                f"the adapter at {previous} does not fit the model: {len(missing)} tensors missing, "
                f"{len(result.unexpected_keys)} unexpected, such as {[*missing, *result.unexpected_keys][:3]}",
                reason="ADAPTER_MISMATCH",
            )
    return trainer


def add_reference(trainer: DPOTrainer, pairs: Dataset, report: Callable[[int, int], None]) -> Dataset:
    """``pairs`` with ``ref_chosen_logps`` and ``ref_rejected_logps``: summed log-probs under the base model."""
    device = trainer.accelerator.device
    loader = DataLoader(
        pairs, batch_size=2 * trainer.args.per_device_train_batch_size, collate_fn=trainer.data_collator
    )
    trainer.model.eval()
    chosen: list[float] = []
    rejected: list[float] = []
    for number, batch in enumerate(loader, 1):
        batch = {key: value.to(device) for key, value in batch.items()}
        for values, logps in zip((chosen, rejected), trainer.compute_ref_log_probs(trainer.model, batch), strict=True):
            values.extend(logps.float().tolist())
        report(number, len(loader))
    return pairs.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)


def probe(trainer: DPOTrainer, pairs: Dataset, count: int) -> list[Probe]:
    """The trainer's own log-probs of the first ``count`` chosen responses under the policy as it stands."""
    rows = pairs.select(range(min(count, len(pairs))))
    batch = {key: value.to(trainer.accelerator.device) for key, value in trainer.data_collator(list(rows)).items()}
    mask = batch.pop("completion_mask")
    batch = {key: value for key, value in batch.items() if not key.startswith("ref_")}
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = trainer.model(**batch, use_cache=False).logits.float()
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return [
        Probe(row["prompt_id"], list(row["chosen_ids"]), logprobs[i][mask[i, 1:].bool()].tolist())
        for i, row in enumerate(rows)
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
) -> Update:
    """Train on ``pairs`` and save the adapter (``adapter_config.json``, ``adapter_model.safetensors``).

    Args:
        previous: directory of the adapter to go on from; None starts at the base model.
        adapter: directory that gets the new adapter.
        work: TRL's output directory.
        progress: told (steps done, steps in all); the reference pass counts as the first tenth.

    Raises:
        InternalError: the loss became NaN or infinite; nothing is saved.
    """
    trainer = make_trainer(recipe, pairs, previous=previous, work=work, seed=seed)
    pairs = add_reference(trainer, pairs, lambda done, total: progress(done, 10 * total))
    trainer.train_dataset = pairs
    trainer.precompute_ref_logps = True
    trainer.add_callback(_Progress(lambda done, total: progress(total + 9 * done, 10 * total)))
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    tail = history[-max(1, len(history) // 4) :]
    metrics = {
        key.replace("/", "_"): sum(entry[key] for entry in tail) / len(tail)
        for key in (
            "loss",
            "grad_norm",
            "rewards/margins",
            "rewards/accuracies",
            "rewards/chosen",
            "rewards/rejected",
            "logps/chosen",
            "logps/rejected",
        )
        if all(key in entry for entry in tail)
    }
    if not all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in history):
        raise InternalError(
            "the DPO loss or its gradient became NaN or infinite; the policy is not published. "
            "Lower dpo.learning_rate or dpo.max_grad_norm, or look at the pairs of this iteration",
            reason="LOSS_NOT_FINITE",
        )
    trainer.model.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    for file in adapter.iterdir():
        file.chmod(0o644)  # the sampler may run as another user
    return Update(
        {**metrics, "steps": float(trainer.state.global_step)}, probe(trainer, pairs, recipe.publication.probes)
    )
