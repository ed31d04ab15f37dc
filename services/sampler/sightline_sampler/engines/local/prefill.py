"""The prefix of K candidates: encodes the image once and runs the prompt once, for any K.

Image features are cached by SHA-256 (bounded in bytes), so other prompts on the image, and later iterations, skip the
vision tower. Prompts of equal length run as one batch: nothing is padded, so results do not depend on the neighbours.
The response's positions continue those that the decoder got for the prompt: in three dimensions for some models, from 1
on for others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from sightline_chassis.feature_cache import FeatureCache

from sightline_sampler.engines.local.features import Encoded, Features
from sightline_sampler.engines.local.kv import RowCache
from sightline_sampler.engines.local.last_layer import NarrowLayer
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prompts import Prepared
from sightline_sampler.engines.local.states import Kept, empty_cache, kept

# Key: the image, and the weights that encoded it (`Weights.vision_key`).
ImageFeatures = FeatureCache[tuple[str, int], Encoded]


@dataclasses.dataclass(slots=True)
class Prefix:
    """Prompts of one length that have been run.

    Attributes:
        logits: for the first token of the response (prompts, vocabulary).
        kept: keys, values and states of the prompts.
        length: number of tokens of each prompt.
        shift: shift of the response's positions (prompts,).
        axes: number of position dimensions, for models with several; 0 for one.
    """

    logits: torch.Tensor
    kept: Kept
    length: int
    shift: torch.Tensor
    axes: int

    def only(self, row: int) -> Prefix:
        """A copy of one of the prompts, so that it does not keep the others in memory."""
        part = slice(row, row + 1)
        return Prefix(self.logits[part].clone(), self.kept.only(row), self.length, self.shift[part].clone(), self.axes)


class Prefiller:
    """Runs prompts.

    Attributes:
        features: image features by (digest, weights).
        sharing: how image features are cached and passed on; the self-check sets it if the result is right.
        last_layer: leaves out what no logit needs; the self-check sets it if the bits are the same.
        slot_bytes: bytes of one token's keys and values; 0 until a prompt has been run.
        row_bytes: bytes of one row's states.
    """

    def __init__(self, base: BaseModel, features: ImageFeatures) -> None:
        self._base = base
        self.features = features
        self.sharing: Features | None = None
        self.last_layer: NarrowLayer | None = None
        self.slot_bytes = self.row_bytes = 0

    def run(self, model: Any, prompts: Sequence[Prepared], vision_key: int) -> Prefix:
        """Run prompts of one `shape()`.

        Args:
            model: the model to call, its policy switched on.
            prompts: at least one.
            vision_key: see `Weights.vision_key`.

        Raises:
            PreconditionFailed: the model's cache has a form that this engine cannot decode with.
        """
        device, length = self._base.device, len(prompts[0].ids)
        # Too few tokens for the usual kernels: run copies with them.
        least = self._base.min_rows
        rows = list(prompts) * -(-least // (len(prompts) * length))
        inputs: dict[str, Any] = {"input_ids": torch.stack([p.ids for p in rows]).to(device)}
        for name in prompts[0].extras:
            inputs[name] = torch.cat([p.extras[name] for p in rows]).to(device)
        if prompts[0].pixels:
            inputs |= self._image_inputs(model, rows, vision_key)
        cache = empty_cache(model.config)
        if self._base.keeps_logits:
            # Not two or three: a product of (prompts, 2, in) runs prompt by prompt, with too few rows each.
            inputs["logits_to_keep"] = 1 if len(rows) >= least else min(length, least)
        with self.last_layer.narrow() if self.last_layer is not None else nullcontext():
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
        # The image's inputs besides pixels: grids and sizes, from which some models compute positions.
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
    """Call the model; returns its decoder's positions (None if it counts itself) and the model's output."""
    for core in (model, getattr(model, "model", model)):
        if hasattr(core, "rope_deltas"):
            core.rope_deltas = None  # from the previous prompts
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
    """Axes of the positions, and by how much the positions after the prompt exceed its length."""
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
