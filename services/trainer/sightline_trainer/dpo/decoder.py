"""The decoder of a model (its text part, as the model names it), and which of its layers are trained."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from torch import Tensor, nn


def adapted(model: Any, pattern: str | None) -> str:
    """The full regular expression for the linear layers that get an adapter.

    Args:
        model: a transformers model.
        pattern: the recipe's; None: every linear layer of the decoder except its head.

    Raises:
        PreconditionFailed: LORA_FINDS_NOTHING.
    """
    if pattern is None:
        return _expression(model)
    if not any(isinstance(part, nn.Linear) and re.fullmatch(pattern, name) for name, part in model.named_modules()):
        raise PreconditionFailed(
            f"dpo.lora.target_modules finds no linear layer in {model.config._name_or_path or 'the model'} "
            f"({model.config.model_type}): {pattern}",
            reason="LORA_FINDS_NOTHING",
        )
    return pattern


def linear_layers(model: Any) -> list[str]:
    """The names of all linear layers of the decoder except its head."""
    inside = {id(module) for module in model.get_decoder().modules()} - {id(model.get_output_embeddings())}
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) in inside]


def _expression(model: Any) -> str:
    """A pattern for exactly the decoder's linear layers: short, by their last names, if that matches no other
    module."""
    wanted = linear_layers(model)
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    lasts = "|".join(re.escape(last) for last in sorted({name.rpartition(".")[2] for name in wanted}))
    short = (re.escape(f"{decoder}.") if decoder else "") + rf".*\.({lasts})"
    found = [name for name, _ in model.named_modules() if re.fullmatch(short, name)]
    return short if found == wanted else "|".join(map(re.escape, wanted))


def freeze(model: Any, *, vision: bool) -> None:
    """Freeze what a full update must not train: everything but decoder and head, unless `vision`."""
    trained = [*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()]
    kept = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(vision or id(parameter) in kept)


def freeze_unreached(model: Any, inputs: Mapping[str, Tensor]) -> None:
    """Freeze the weights that no image feature depends on. LLaVA takes its features from a layer before the last, so
    the layers after it never get a gradient.

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
