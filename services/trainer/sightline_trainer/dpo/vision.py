"""Images of a batch, each encoded once; features of a frozen tower are cached across steps and epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sightline.picture_rule import rgb
from sightline_chassis.families.processing import Processing
from sightline_chassis.feature_cache import FeatureCache
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

Names = tuple[str, ...]


@dataclass
class PromptPictures:
    """A prompt's images, which pass processor and tower together.

    Attributes:
        names: the digests of their pixels, in order.
        tokens: number of the prompt's image tokens.
        processing: joins them with other prompts' images.
        inputs: the processor's outputs for them (`pixel_values`, sizes, masks); None if `features` are known.
        features: [layers, tokens, width] of tower and projector; None until they are encoded. The first layer replaces
            the tokens; the others are added further up in the decoder (deepstack).
    """

    names: Names
    tokens: int
    processing: Processing
    inputs: dict[str, Tensor] | None = None
    features: Tensor | None = None


def digest(image: Any) -> str:
    """The name of an image: a digest of its encoded bytes if it has the form of `datasets`, otherwise of its pixels."""
    if isinstance(image, Mapping):
        return hashlib.sha256(image["bytes"]).hexdigest()
    picture = rgb(image)
    return hashlib.sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()


def frozen(backbone: nn.Module, decoder: nn.Module) -> bool:
    """Whether the image features never change: nothing is trained outside the decoder."""
    inside = {id(parameter) for parameter in decoder.parameters()}
    return not any(each.requires_grad for each in backbone.parameters() if id(each) not in inside)


class ImageEncoder:
    """Encodes images, and passes features to the model in the form that its `get_image_features` returns.

    Attributes:
        cache: features of images seen before; None for a trained tower, whose features carry a graph.
    """

    def __init__(self, cache: FeatureCache[Names, Tensor] | None) -> None:
        self.cache = cache
        self._kind: type[Any] = BaseModelOutputWithPooling
        self._rank: int | None = None  # rank of one tensor of features; None: a list, image by image

    def encode(self, backbone: Any, pictures: Sequence[PromptPictures], *, keep: bool = True) -> Any:
        """Features of all images in order, in the form of the model's `mm_encoder_outputs`; each is encoded once.

        Args:
            backbone: a transformers model with `get_image_features`.
            pictures: the pictures of a pack.
            keep: whether to cache them.

        Raises:
            RuntimeError: the numbers of features and of image tokens differ.
        """
        missing = {each.names: each for each in pictures if each.features is None}
        fresh: dict[Names, Tensor] = {}
        if missing:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.cache is None):
                encoded = self._encoded(backbone, list(missing.values()))
            fresh = dict(zip(missing, encoded, strict=True))
            if self.cache is not None and keep:
                for names, features in fresh.items():
                    self.cache.put(names, features.detach().clone())
        features = torch.cat(
            [fresh[each.names] if each.features is None else each.features for each in pictures], dim=1
        )
        return self._formed(features)

    def _encoded(self, backbone: Any, pictures: Sequence[PromptPictures]) -> tuple[Tensor, ...]:
        device = next(backbone.parameters()).device
        assert all(each.inputs is not None for each in pictures)
        inputs = pictures[0].processing.join([each.inputs or {} for each in pictures])
        output = backbone.get_image_features(
            **{name: value.to(device) for name, value in inputs.items()}, return_dict=True
        )
        self._kind = type(output)
        self._rank = output.pooler_output.dim() if isinstance(output.pooler_output, Tensor) else None
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        features: Tensor = torch.stack([_flat(layer) for layer in layers])
        counts = [each.tokens for each in pictures]
        if features.shape[1] != sum(counts):
            raise RuntimeError(f"its images have {features.shape[1]} features and its prompts {sum(counts)} tokens")
        return tuple(features.split(counts, dim=1))

    def _formed(self, features: Tensor) -> Any:
        first, *deeper = features
        if self._rank is not None:
            return self._kind(pooler_output=first.view(*[1] * (self._rank - 2), *first.shape))
        further = {"deepstack_features": [[layer] for layer in deeper]} if deeper else {}
        return self._kind(pooler_output=[first], **further)


def _flat(features: Any) -> Tensor:
    """[tokens, width] from features given by image or by tile."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.flatten(0, -2) for part in parts])
