"""The prefix of K candidates: the image encoded once, the prompt run once, whatever K is.

Features of an image are kept by its SHA-256 (bounded by bytes), so further prompts on it, and later iterations, skip
the vision tower. Prompts of equal length run as one batch: nothing is padded, so nothing depends on the neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from sightline_chassis.feature_cache import FeatureCache
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sightline_sampler.engines.local.kv import RowCache
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prompts import Prepared
from sightline_sampler.engines.local.stems import Layers

Features = torch.Tensor | list[torch.Tensor]
# By image and by the weights that encoded it (`Weights.vision_key`).
ImageFeatures = FeatureCache[tuple[str, int], Features]


@dataclasses.dataclass(slots=True)
class Prefix:
    """Prompts of one length, run.

    Attributes:
        logits: for the first token of the response (prompts, vocabulary).
        layers: keys and values of the prompts.
        length: tokens of each prompt.
        shift: what positions of the response are moved by (prompts,), for models with rotary positions in three
            dimensions; None for the others.
    """

    logits: torch.Tensor
    layers: Layers
    length: int
    shift: torch.Tensor | None

    def only(self, row: int) -> Prefix:
        """One of the prompts, copied, so that it does not keep the others."""
        part = slice(row, row + 1)
        layers = [(keys[part].clone(), values[part].clone()) for keys, values in self.layers]
        shift = None if self.shift is None else self.shift[part].clone()
        return Prefix(self.logits[part].clone(), layers, self.length, shift)


class Prefiller:
    """Runs prompts.

    Attributes:
        features: image features by (digest, weights).
        shares_features: set by the self-check, for architectures where it is known to be right.
        slot_bytes: bytes that keys and values of one token take; 0 until a prompt has been run.
    """

    def __init__(self, base: BaseModel, features: ImageFeatures) -> None:
        self._base = base
        self.features = features
        self.shares_features = False
        self.slot_bytes = 0

    def run(self, model: Any, prompts: Sequence[Prepared], vision_key: int) -> Prefix:
        """Run prompts of one `shape()`.

        Args:
            model: the model to call, its policy switched on.
            prompts: at least one.
            vision_key: see `Weights.vision_key`.
        """
        device, length = self._base.device, len(prompts[0].ids)
        # Too few tokens for the usual kernels: run copies beside them.
        least = self._base.min_rows
        rows = list(prompts) * -(-least // (len(prompts) * length))
        inputs: dict[str, Any] = {"input_ids": torch.stack([p.ids for p in rows]).to(device)}
        for name in prompts[0].extras:
            inputs[name] = torch.cat([p.extras[name] for p in rows]).to(device)
        if prompts[0].pixels:
            inputs |= self._image_inputs(model, rows, vision_key)
        cache = DynamicCache()
        if self._base.keeps_logits:
            # Not two or three: a product of (prompts, 2, in) is made prompt by prompt, with too few rows each.
            inputs["logits_to_keep"] = 1 if len(rows) >= least else min(length, least)
        core = getattr(model, "model", model)
        if hasattr(core, "rope_deltas"):
            core.rope_deltas = None
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
        shift = getattr(core, "rope_deltas", None)
        if hasattr(core, "rope_deltas"):
            shift = (
                torch.zeros(len(rows), dtype=torch.long, device=device) if shift is None else shift.reshape(-1).long()
            )
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        self.slot_bytes = RowCache.slot_bytes(layers)
        return Prefix(logits, layers, length, shift)

    def _image_inputs(self, model: Any, prompts: Sequence[Prepared], vision_key: int) -> dict[str, Any]:
        if not self.shares_features:
            return self._stacked(prompts)
        found: dict[str, Features] = {}
        missing: dict[str, Prepared] = {}
        for prompt in prompts:
            if prompt.digest not in found and prompt.digest not in missing:
                features = self.features.get((prompt.digest, vision_key))
                if features is None:
                    missing[prompt.digest] = prompt
                else:
                    found[prompt.digest] = features
        if missing:
            new = split_features(
                model.get_image_features(**self._stacked(list(missing.values())), return_dict=True).pooler_output,
                len(missing),
            )
            for digest, features in zip(missing, new, strict=True):
                found[digest] = features
                self.features.put((digest, vision_key), features)
        joined = join_features([found[prompt.digest] for prompt in prompts])
        # What is left of the image beside its pixels: grids and sizes, from which some models make positions.
        rest = self._stacked(prompts, without="pixel")
        return {**rest, "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=joined)}}

    def _stacked(self, prompts: Sequence[Prepared], without: str = "") -> dict[str, torch.Tensor]:
        base = self._base
        names = [name for name in prompts[0].pixels if not without or not name.startswith(without)]
        stacked = {name: torch.cat([p.pixels[name] for p in prompts]).to(base.device) for name in names}
        return {k: t.to(base.dtype) if t.is_floating_point() else t for k, t in stacked.items()}


def split_features(pooled: Any, images: int) -> list[Features]:
    """What `get_image_features` gave for images of one shape, image by image: a tensor, or a list of tensors.

    Copies, so that keeping one image does not keep the batch.
    """
    if torch.is_tensor(pooled):
        return [part.clone() for part in pooled.chunk(images)]
    each = len(pooled) // images
    return [[part.clone() for part in pooled[i * each : (i + 1) * each]] for i in range(images)]


def join_features(features: Sequence[Features]) -> Features:
    """The inverse of `split_features`."""
    if torch.is_tensor(features[0]):
        return torch.cat(list(features))  # type: ignore[arg-type]
    return [part for parts in features for part in parts]
