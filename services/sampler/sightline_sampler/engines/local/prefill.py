"""The prefix of K candidates: the image encoded once, the prompt run once, whatever K is.

Features of an image are kept by its SHA-256 (bounded by bytes), so further prompts on it, and later iterations, skip
the vision tower. Prompts of equal length run as one batch: nothing is padded, so nothing depends on the neighbours.
Where the response's positions begin is what the decoder was given for the prompt, and one more: in three dimensions for
some models, from 1 on for others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from sightline_chassis.feature_cache import FeatureCache

from sightline_sampler.engines.local.features import Encoded, Features
from sightline_sampler.engines.local.kv import RowCache
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prompts import Prepared
from sightline_sampler.engines.local.states import Kept, empty_cache, kept

# By image and by the weights that encoded it (`Weights.vision_key`).
ImageFeatures = FeatureCache[tuple[str, int], Encoded]


@dataclasses.dataclass(slots=True)
class Prefix:
    """Prompts of one length, run.

    Attributes:
        logits: for the first token of the response (prompts, vocabulary).
        kept: keys, values and states of the prompts.
        length: tokens of each prompt.
        shift: what positions of the response are moved by (prompts,).
        axes: of positions that the model has in several dimensions; 0 if it has them in one.
    """

    logits: torch.Tensor
    kept: Kept
    length: int
    shift: torch.Tensor
    axes: int

    def only(self, row: int) -> Prefix:
        """One of the prompts, copied, so that it does not keep the others."""
        part = slice(row, row + 1)
        return Prefix(self.logits[part].clone(), self.kept.only(row), self.length, self.shift[part].clone(), self.axes)


class Prefiller:
    """Runs prompts.

    Attributes:
        features: image features by (digest, weights).
        sharing: how image features are kept and handed over; set by the self-check, where that is known to be right.
        slot_bytes: bytes that keys and values of one token take; 0 until a prompt has been run.
        row_bytes: bytes that the states of one row take.
    """

    def __init__(self, base: BaseModel, features: ImageFeatures) -> None:
        self._base = base
        self.features = features
        self.sharing: Features | None = None
        self.slot_bytes = self.row_bytes = 0

    def run(self, model: Any, prompts: Sequence[Prepared], vision_key: int) -> Prefix:
        """Run prompts of one `shape()`.

        Args:
            model: the model to call, its policy switched on.
            prompts: at least one.
            vision_key: see `Weights.vision_key`.

        Raises:
            PreconditionFailed: the model keeps what this engine cannot decode with.
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
        cache = empty_cache(model.config)
        if self._base.keeps_logits:
            # Not two or three: a product of (prompts, 2, in) is made prompt by prompt, with too few rows each.
            inputs["logits_to_keep"] = 1 if len(rows) >= least else min(length, least)
        positions, output = decoder_positions(model, {**inputs, "past_key_values": cache, "use_cache": True})
        axes, shift = _next_places(positions, length, len(rows), device)
        held = kept(cache, length)
        self.slot_bytes, self.row_bytes = RowCache.slot_bytes(held.layers), held.row_bytes()
        return Prefix(output.logits[:, -1], held, length, shift, axes)

    def _image_inputs(self, model: Any, prompts: Sequence[Prepared], vision_key: int) -> dict[str, Any]:
        if self.sharing is None:
            return self.joined(prompts)
        found: dict[str, Encoded] = {}
        missing: dict[str, Prepared] = {}
        for prompt in prompts:
            if prompt.digest not in found and prompt.digest not in missing:
                features = self.features.get((prompt.digest, vision_key))
                if features is None:
                    missing[prompt.digest] = prompt
                else:
                    found[prompt.digest] = features
        if missing:
            new = self.sharing.encode(model, self.joined(list(missing.values())), len(missing))
            for digest, features in zip(missing, new, strict=True):
                found[digest] = features
                self.features.put((digest, vision_key), features)
        # What is left of the image beside its pixels: grids and sizes, from which some models make positions.
        beside = [{name: t for name, t in prompt.pixels.items() if not t.is_floating_point()} for prompt in prompts]
        rest = self._moved(beside)
        return {**rest, "mm_encoder_outputs": {"image": self.sharing.join([found[p.digest] for p in prompts])}}

    def joined(self, prompts: Sequence[Prepared]) -> dict[str, torch.Tensor]:
        """The image inputs of prompts of one shape, on the model's device and in its type."""
        return self._moved([prompt.pixels for prompt in prompts])

    def _moved(self, images: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        base = self._base
        joined = base.processing.join(images)
        moved = {name: tensor.to(base.device) for name, tensor in joined.items()}
        return {name: t.to(base.dtype) if t.is_floating_point() else t for name, t in moved.items()}


def decoder_positions(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor | None, Any]:
    """Call the model; the positions that its decoder was given, None if it counts itself, and the model's output."""
    for core in (model, getattr(model, "model", model)):
        if hasattr(core, "rope_deltas"):
            core.rope_deltas = None  # of the prompts before
    seen: list[torch.Tensor | None] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: seen.append(given.get("position_ids")), with_kwargs=True
    )
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    return (seen[0] if seen else None), output


def _next_places(
    positions: torch.Tensor | None, length: int, rows: int, device: torch.device
) -> tuple[int, torch.Tensor]:
    """Axes of the positions, and by how much those after the prompt are over its length."""
    if positions is None:
        return 0, torch.zeros(rows, dtype=torch.long, device=device)
    axes = positions.shape[0] if positions.dim() == 3 else 0
    after = positions[..., -1].reshape(max(axes, 1), -1).long() + 1 - length
    if bool((after != after[:1]).any()):
        raise PreconditionFailed(
            "this engine cannot decode a model whose text has different positions in each dimension",
            reason="ARCHITECTURE_UNSUPPORTED",
        )
    return axes, after[0].expand(rows)
