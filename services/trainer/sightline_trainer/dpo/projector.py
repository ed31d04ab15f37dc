"""Projector: the layers between a model's vision tower and its decoder, trained with the adapter on request.

POVID and BPO train it together with the LoRA. It uses PEFT's `modules_to_save`: whole copies beside the originals,
saved with the adapter in one file; with adapters off, the reference uses the originals.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.utils import ModulesToSaveWrapper
from sightline.errors import PreconditionFailed


def projector(model: Any) -> list[str]:
    """The names of the modules that hold weights and are neither in the vision tower nor in the decoder.

    Args:
        model: a transformers model.

    Raises:
        PreconditionFailed: PROJECTOR_NOT_FOUND: there is none, as in Qwen-VL, whose merger is part of the tower.
    """
    backbone = model.base_model
    around = [backbone.get_encoder(modality="image"), model.get_decoder()]
    start = next(name for name, module in model.named_modules() if module is backbone)
    found = [] if around[0] is backbone else list(_beside(backbone, around, f"{start}." if start else ""))
    if not found:
        raise PreconditionFailed(
            f"dpo.train_projector finds no separate projector in {model.config._name_or_path or 'the model'} "
            f"({model.config.model_type}): it is part of the vision tower; leave that key out, or "
            "train with dpo.train=full and dpo.train_vision",
            reason="PROJECTOR_NOT_FOUND",
        )
    return found


def _beside(module: Any, around: list[Any], path: str) -> Iterator[str]:
    for name, child in module.named_children():
        inside = {id(each) for each in child.modules()}
        if any(child is each for each in around):
            continue
        if any(id(each) in inside for each in around):
            yield from _beside(child, around, f"{path}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{path}{name}"


def in_float32(model: Any) -> None:
    """Make trained weights float32, whatever the base model's number type: a step of 5e-6 is lost in bfloat16. TRL
    casts the adapter of a quantized model to bfloat16."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.float()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
