"""Images of a batch, each encoded once; what a frozen tower says of them is kept over steps and epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sightline.picture_rule import rgb
from sightline_chassis.feature_cache import FeatureCache
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


@dataclass
class Image:
    """One image of a prompt.

    Attributes:
        digest: names its pixels.
        inputs: what the processor makes of it (`pixel_values` and sizes), first dimension one image (or its patches);
            None where `features` are known.
        features: [tokens, width] of tower and projector; None until they are encoded.
    """

    digest: str
    inputs: dict[str, Tensor] | None = None
    features: Tensor | None = None


def digest(image: Any) -> str:
    """The name of an image: of its encoded bytes where it comes as `datasets` stores it, else of its pixels."""
    if isinstance(image, Mapping):
        return hashlib.sha256(image["bytes"]).hexdigest()
    picture = rgb(image)
    return hashlib.sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()


def split_images(inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """A processor's image tensors, image by image."""
    if "pixel_values" not in inputs:
        return []
    if "image_grid_thw" in inputs:  # Qwen-VL: patches of all images in one long tensor
        grid = inputs["image_grid_thw"]
        parts = inputs["pixel_values"].split(grid.prod(dim=1).tolist())
        return [{"pixel_values": part, "image_grid_thw": row[None]} for part, row in zip(parts, grid, strict=True)]
    return [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(len(inputs["pixel_values"]))]


def join_images(images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The images' tensors as one batch; LLaVA-NeXT's tiles are filled up to the most that an image has."""
    if not images:
        return {}
    joined = {}
    for name in images[0]:
        values = [image[name] for image in images]
        if name == "pixel_values" and values[0].dim() == 5:
            most = max(value.shape[1] for value in values)
            values = [nn.functional.pad(value, (0, 0) * 3 + (0, most - value.shape[1])) for value in values]
        joined[name] = torch.cat(values)
    return joined


def frozen(backbone: nn.Module) -> bool:
    """Whether the image features never change: nothing of tower and projector is trained, no adapter is on them."""
    return not any(
        parameter.requires_grad
        for name, parameter in backbone.named_parameters()
        if not name.startswith("language_model.")
    ) and not any("lora" in name for name, _ in backbone.named_modules() if not name.startswith("language_model."))


def encode(backbone: Any, images: list[Image], cache: FeatureCache[str, Tensor] | None) -> BaseModelOutputWithPooling:
    """Features of all images in order, as the model's `mm_encoder_outputs` has them; each image is encoded once.

    Args:
        backbone: a transformers model with `get_image_features`.
        images: those of a pack.
        cache: of a frozen tower; None for one that is trained, whose features carry a graph.
    """
    device = next(backbone.parameters()).device
    missing = {image.digest: image for image in images if image.features is None}
    if missing:
        assert all(image.inputs is not None for image in missing.values())
        inputs = join_images([image.inputs for image in missing.values()])  # type: ignore[misc]
        inputs = {name: value.to(device) for name, value in inputs.items()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            encoded = backbone.get_image_features(**inputs, return_dict=True).pooler_output
        fresh = dict(zip(missing, encoded, strict=True))
        if cache is not None:
            for name, features in fresh.items():
                cache.put(name, features.detach().clone())
    else:
        fresh = {}
    features = [fresh[image.digest] if image.features is None else image.features for image in images]
    return BaseModelOutputWithPooling(pooler_output=features)
