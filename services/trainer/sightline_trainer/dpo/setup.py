"""Builds the trainer of an update from the recipe: model, adapter or weights, reference, arguments, collator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image, List
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from sightline.errors import PreconditionFailed
from sightline_chassis.families.auto import AutoModelForImageTextToText
from sightline_chassis.families.quantized import Quantization, quantized
from sightline_chassis.families.unread_layers import skip_unread_layers
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig

from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.decoder import adapted, freeze, freeze_unreached
from sightline_trainer.dpo.device import pin
from sightline_trainer.dpo.doubts import Doubts
from sightline_trainer.dpo.extra_rows import extra_rows
from sightline_trainer.dpo.family import Family
from sightline_trainer.dpo.fused_layers import fuse_layers, liger
from sightline_trainer.dpo.fused_lora import fuse
from sightline_trainer.dpo.losses import check_losses, trl_losses
from sightline_trainer.dpo.open_losses import check_bound
from sightline_trainer.dpo.projector import in_float32, projector
from sightline_trainer.dpo.quiet import quiet
from sightline_trainer.dpo.sharded import make_ready
from sightline_trainer.dpo.sharing import share
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.token_kl import TokenKl
from sightline_trainer.dpo.trainer import FastDPOTrainer
from sightline_trainer.recipe import Recipe
from sightline_trainer.sections import Dpo

logger = logging.getLogger(__name__)


def load_policy(
    model: str | Path, dtype: str, attention: str = "sdpa", quantization: Quantization | None = None
) -> Any:
    """Load a checkpoint in a number type. The trainer moves it to its device, whole or under FSDP in pieces; a
    quantized one is there already.

    Raises:
        PreconditionFailed: QUANTIZATION_UNAVAILABLE without bitsandbytes; ATTENTION_UNAVAILABLE if the model or this
            machine lacks that attention.
    """
    transformers_logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    held: dict[str, Any] = {}
    if quantization is not None:
        held = quantized(model, kind, torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
    if attention != "sdpa":  # that is transformers' own choice, or eager if a model's parts support nothing else
        held["attn_implementation"] = attention
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=kind, **held)
    except (ImportError, ValueError) as error:
        if attention == "sdpa":
            raise
        said = str(error).partition("\n")[0].partition(". ")[0]
        raise PreconditionFailed(
            f"dpo.attn_implementation={attention} is not available for {model}: {said}", reason="ATTENTION_UNAVAILABLE"
        ) from error
    skip_unread_layers(loaded)
    return loaded


def make_trainer(
    recipe: Recipe,
    pairs: Dataset,
    *,
    previous: Path | None,
    work: Path,
    seed: int,
    iteration: int = 1,
    load: Callable[[str | Path, str], Any] | None = None,
) -> FastDPOTrainer:
    """A DPOTrainer on the base model with an adapter (or weights) that starts from `previous` or fresh.

    Args:
        load: replaces `load_policy`; for benchmarks, which have no checkpoint on disk.

    Raises:
        PreconditionFailed: the previous adapter's tensors do not fit the model, or the losses make no sense.
    """
    torch.set_num_threads(recipe.threads)
    quiet()
    settings = recipe.dpo
    columns = _columns(recipe, pairs)
    check_losses(
        settings.loss,
        margins=settings.margin_scale > 0,
        weights="weight" in columns,
        label_smoothing=settings.label_smoothing,
    )
    check_bound(settings.loss, settings.opened_losses)
    _see_columns(settings, pairs)
    extras = extra_rows(settings, seed)
    full = settings.train == "full"
    # A full update has float32 masters and computes in dpo.dtype by autocast: bfloat16 weights lose a step of 5e-6.
    dtype = "float32" if full else settings.dtype
    arguments = _arguments(recipe, len(pairs), work=work, seed=seed)
    load = load or (lambda place, kind: load_policy(place, kind, settings.attn_implementation, recipe.quantization))
    model = load(previous if full and previous else recipe.base_model, dtype)
    family = Family(model, recipe.processor.load(), shown=_shown(pairs))
    if full:
        freeze(model, vision=settings.train_vision)
    make_ready(model)
    trainer = FastDPOTrainer(
        model=model,
        ref_model=load(recipe.base_model, dtype) if full else None,
        args=arguments,
        train_dataset=_rows(pairs),
        processing_class=family.processor,
        data_collator=PairCollator(
            family,
            columns=columns,
            extras=extras,
            token_weights=settings.token_weights,
            budget=settings.batch_tokens,
        ),
        peft_config=None if full else _lora(recipe, model),
        losses=dict(settings.loss),
    )
    trainer.opened = settings.opened_losses
    trainer.extras, trainer.guidance = extras, settings.guidance.scale
    trainer.doubts, trainer.rpo_temperature = Doubts(settings.doubt), settings.rpo_temperature
    trainer.references, trainer.previous = settings.reference, previous
    if full and settings.train_vision:
        _freeze_unreached(trainer)
    if not full:
        fuse(trainer.model)
    if settings.kernels == "auto":
        _fuse_layers(trainer)
    if settings.train_projector or recipe.quantization is not None:
        in_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.margin_scale, trainer.povid_betas = settings.margin_scale, settings.povid_betas
    if settings.carry == "optimizer":
        trainer.span = (iteration - 1, recipe.iterations)
    if previous is not None and not full:
        load_adapter(trainer.model, previous)
    if settings.shared_prefix:
        reference = () if trainer.ref_model is None else (trainer.accelerator.unwrap_model(trainer.ref_model),)
        trainer.data_collator.sharing = share(
            trainer.model, cache_bytes=settings.image_cache_mib << 20, extra_models=reference
        )
    if settings.token_kl:
        trainer.token_kl = _token_kl(trainer, settings.token_kl)
    return trainer


def _fuse_layers(trainer: FastDPOTrainer) -> None:
    """Liger's kernels on a GPU, where the layers are whole."""
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    models = [model for model in models if next(model.parameters()).is_cuda]
    kernels = liger() if models and not trainer.is_fsdp_enabled else None
    if kernels is None:
        return
    for model in models:
        decoder = base_of(trainer.accelerator.unwrap_model(model)).get_decoder()
        logger.info("fused layers of the decoder: %s", dict(fuse_layers(decoder, kernels)))


def _token_kl(trainer: FastDPOTrainer, alpha: float) -> TokenKl:
    if trainer.is_fsdp_enabled:
        raise PreconditionFailed(
            "dpo.token_kl needs the whole head of the model on every process, which FSDP shards; set it to 0, or "
            "launch the update without sharding",
            reason="TOKEN_KL_SHARDED",
        )
    reference = None if trainer.ref_model is None else trainer.accelerator.unwrap_model(trainer.ref_model)
    return TokenKl(alpha, trainer.model, reference)


_NEEDED = {"optimism": "own_ids", "rpo": "embedding"}


def _see_columns(settings: Dpo, pairs: Dataset) -> None:
    if settings.token_weights.by == "sentence" and not set(pairs.column_names) & {
        "chosen_sentences",
        "rejected_sentences",
    }:
        raise PreconditionFailed(
            "dpo.token_weights.by=sentence needs scores by sentence, but no pair has any; use a reward term that "
            "scores sentences, such as reward.terms.clip.by=sentence",
            reason="LOSS_UNUSABLE",
        )
    for loss, column in _NEEDED.items():
        if loss in settings.loss and (column not in pairs.column_names or not all(pairs[column])):
            raise PreconditionFailed(
                f"the loss {loss} needs the column {column} in every pair, which only a run with that loss writes; "
                f"these pairs were made without it",
                reason="LOSS_UNUSABLE",
            )


def _columns(recipe: Recipe, pairs: Dataset) -> list[str]:
    """The numbers of a pair that the loss needs."""
    given = [name for name in ("weight", "second_weight") if name in pairs.column_names]
    weighted = any(not set(pairs[name]) <= {1.0, None} for name in given)
    margins = recipe.dpo.margin_scale > 0 and "margin" in pairs.column_names
    near = "rpo" in recipe.dpo.loss
    return [name for name, used in (("weight", weighted), ("margin", margins), ("embedding", near)) if used]


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
        bf16=settings.dtype == "bfloat16" and (settings.train == "full" or settings.train_projector or not on_cpu),
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
    pin(arguments)
    together = settings.batch_size * settings.accumulate * arguments.world_size
    # Rounded down, so that a single step does not have rate 0.
    arguments.warmup_steps = int(settings.warmup_ratio * math.ceil(pairs / together) * settings.epochs)
    return arguments


def _shown(pairs: Dataset) -> str | None:
    """A prompt with one image as the sampler rendered it, by any template; None if there is none."""
    images, prompts = pairs.select_columns(["images"]), pairs["rendered_prompt"]
    return next((prompts[i] for i in range(len(pairs)) if len(images[i]["images"]) == 1), None)


def _freeze_unreached(trainer: FastDPOTrainer) -> None:
    shown = next((row for row in trainer.train_dataset if row["images"]), None)
    if shown is not None:
        freeze_unreached(trainer.model, PairCollator(trainer.data_collator.family)([shown]))


def _lora(recipe: Recipe, model: Any) -> LoraConfig:
    lora = recipe.dpo.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=adapted(model, lora.target_modules),
        modules_to_save=projector(model) if recipe.dpo.train_projector else None,
        task_type="CAUSAL_LM",
    )


def trained_frame(recipe: Recipe, frame: Any) -> Any:
    """A model without weights (meta device), prepared as for an update: with the recipe's adapter, or with frozen
    parts.

    Raises:
        PreconditionFailed: the adapter finds no layer.
    """
    if recipe.dpo.train == "full":
        freeze(frame, vision=recipe.dpo.train_vision)
        return frame
    quiet()
    return get_peft_model(frame, _lora(recipe, frame), low_cpu_mem_usage=True)


def _rows(pairs: Dataset) -> Dataset:
    """The pairs with ids; their images stay encoded until the pixels are needed."""
    pairs = pairs.add_column("pair_id", list(range(len(pairs))))
    for name in pairs.column_names:
        if name.endswith("images"):
            pairs = pairs.cast_column(name, List(Image(decode=False)))
    return pairs


def load_adapter(model: Any, previous: Path) -> None:
    """Put a saved adapter's tensors into the model's adapter.

    Raises:
        PreconditionFailed: ADAPTER_MISMATCH.
    """
    result = set_peft_model_state_dict(model, load_file(previous / "adapter_model.safetensors"))
    missing = [key for key in result.missing_keys if "lora_" in key or ".modules_to_save." in key]
    if missing or result.unexpected_keys:
        raise PreconditionFailed(
            f"the adapter at {previous} does not fit the model: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unexpected, such as {[*missing, *result.unexpected_keys][:3]}",
            reason="ADAPTER_MISMATCH",
        )
