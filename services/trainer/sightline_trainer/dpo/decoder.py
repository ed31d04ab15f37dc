"""Decoder: the part of a model that writes, as the model itself names it, and what of it is trained."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from torch import Tensor, nn


def adapted(model: Any, pattern: str | None) -> str:
    """The regular expression, whole, of the linear layers that get an adapter.

    Args:
        model: a transformers model.
        pattern: the recipe's; None: every linear layer of the decoder, its head left out.

    Raises:
        PreconditionFailed: LORA_FINDS_NOTHING, with what there is.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if pattern is not None:
        if not any(re.fullmatch(pattern, name) for name in linear):
            raise PreconditionFailed(
                f"dpo.lora.target_modules {pattern!r} finds no linear layer in {model.config.model_type!r}, whose "
                f"decoder's are {decoder_layers(model)!r}; leave it out to take those",
                reason="LORA_FINDS_NOTHING",
            )
        return pattern
    return decoder_layers(model)


def decoder_layers(model: Any) -> str:
    """The regular expression of every linear layer of the decoder, its head left out."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    inside = {name: module for name, module in decoder.named_modules() if name and module is not head}
    linear = {name for name, module in inside.items() if isinstance(module, nn.Linear)}
    lasts = {name.rpartition(".")[2] for name in linear}
    others = {name for name in inside if name not in linear}
    start = re.escape(f"{prefix}.") if prefix else ""
    if any(name.rpartition(".")[2] in lasts for name in others) or any("." not in name for name in linear):
        return start + f"({'|'.join(map(re.escape, sorted(linear)))})"
    return start + rf".*\.({'|'.join(map(re.escape, sorted(lasts)))})"


def freeze(model: Any, *, vision: bool) -> None:
    """Leave out of a full update what is not to be trained: all but decoder and head, without `vision`."""
    trained = [*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()]
    kept = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(vision or id(parameter) in kept)


def freeze_unreached(model: Any, inputs: Mapping[str, Tensor]) -> None:
    """Leave out of a full update what no image feature is made of. LLaVA takes its features from a layer before the
    last: what comes after it never has a gradient.

    Args:
        inputs: the image tensors of some prompt.
    """
    backbone = model.base_model
    inside = {id(parameter) for parameter in model.get_decoder().parameters()}
    outside = [each for each in backbone.parameters() if id(each) not in inside and each.requires_grad]
    named = inspect.signature(type(backbone).get_image_features).parameters
    device = next(backbone.parameters()).device
    output = backbone.get_image_features(
        **{name: value.to(device) for name, value in inputs.items() if name in named}, return_dict=True
    )
    total = _summed([output.pooler_output, getattr(output, "deepstack_features", None)])
    for parameter, gradient in zip(outside, torch.autograd.grad(total, outside, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


def _summed(features: Any) -> Any:
    if isinstance(features, Tensor):
        return features.float().sum()
    return sum(_summed(each) for each in features) if features is not None else 0.0
