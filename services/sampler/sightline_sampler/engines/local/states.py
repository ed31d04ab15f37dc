"""A model's cache of the tokens that it has read: keys and values of each, and in some layers a state instead.

Layers of linear attention and of convolutions (Qwen3.5, MiniCPM-V 4.6, LFM2) have a state of fixed size per row. It has
no positions, so it is copied for each candidate and follows the rows when the cache moves them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sightline.errors import PreconditionFailed
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from sightline_sampler.engines.local.stems import Layers

State: TypeAlias = list[tuple[torch.Tensor | None, torch.Tensor | None]]
"""A layer's states of convolution and recurrence, each (rows, ...)."""
States: TypeAlias = dict[int, State]
"""States by the layer's number in the model."""


@dataclasses.dataclass(slots=True)
class Kept:
    """A model's cache for prompts.

    Attributes:
        layers: keys and values of the layers that have them.
        places: the numbers of these layers in the model.
        states: states of the layers that have one; other layers use the cache of another layer.
    """

    layers: Layers
    places: tuple[int, ...]
    states: States

    def only(self, row: int) -> Kept:
        """A copy of one of the prompts, so that it does not keep the others in memory."""
        part = slice(row, row + 1)
        states = {
            place: [(_part(convolved, part), _part(recurrent, part)) for convolved, recurrent in state]
            for place, state in self.states.items()
        }
        return Kept([(keys[part].clone(), values[part].clone()) for keys, values in self.layers], self.places, states)

    def row_bytes(self) -> int:
        """Bytes that the states of one row take."""
        tensors = [tensor for state in self.states.values() for pair in state for tensor in pair if tensor is not None]
        return sum(tensor[:1].nbytes for tensor in tensors)

    def refilled(self, config: Any) -> DynamicCache:
        """A transformers cache with a copy of this content: the model writes into states in place."""
        cache = empty_cache(config)
        for place, (keys, values) in zip(self.places, self.layers, strict=True):
            cache.update(keys, values, place)
        for place, state in self.states.items():
            _fill(cache.layers[place], [(_part(a, slice(None)), _part(b, slice(None))) for a, b in state])
        return cache


def empty_cache(config: Any) -> DynamicCache:
    """A cache for prompts that keeps every token's keys and values, even if a layer's window is short.

    Raises:
        PreconditionFailed: transformers has no cache for the layers of this model.
    """
    try:
        cache = DynamicCache(config=config)
    except (KeyError, TypeError) as error:
        raise PreconditionFailed(
            f"this engine cannot decode the layers of this model: {error}", reason="ARCHITECTURE_UNSUPPORTED"
        ) from error
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    return cache


def kept(cache: Cache, length: int) -> Kept:
    """The content of a cache after prompts of `length` tokens.

    Raises:
        PreconditionFailed: a layer keeps something else.
    """
    layers: Layers = []
    places: list[int] = []
    states: States = {}
    for place, layer in enumerate(cache.layers):
        if type(layer) is LinearAttentionLayer:
            states[place] = [(layer.conv_states[i], layer.recurrent_states[i]) for i in range(layer.number_of_states)]
        elif isinstance(layer, DummyLayer) or not layer.is_initialized:
            continue
        elif type(layer) is DynamicLayer and layer.keys.shape[2] == length:
            layers.append((layer.keys, layer.values))
            places.append(place)
        else:
            what = f"a {type(layer).__name__}"
            if isinstance(layer, CacheLayerMixin) and layer.keys is not None:
                what = f"{layer.keys.shape[2]} keys of a prompt of {length} tokens (cross-attention to the image?)"
            raise PreconditionFailed(
                f"this engine cannot decode this model: its layer {place} keeps {what}",
                reason="ARCHITECTURE_UNSUPPORTED",
            )
    return Kept(layers, tuple(places), states)


class RowStates:
    """States of the rows being decoded, in the order of the rows."""

    def __init__(self, like: States) -> None:
        self.layers = {place: LinearAttentionLayer(number_of_states=len(state)) for place, state in like.items()}
        for place, layer in self.layers.items():
            _fill(layer, [(_part(a, slice(0, 0)), _part(b, slice(0, 0))) for a, b in like[place]])

    def insert(self, before: int, new: States, source: torch.Tensor) -> None:
        """Put rows `source` of a prompt's states after the `before` existing rows."""
        for place, layer in self.layers.items():
            for i, (convolved, recurrent) in enumerate(new[place]):
                for mine, theirs in ((layer.conv_states, convolved), (layer.recurrent_states, recurrent)):
                    if theirs is not None:
                        mine[i] = torch.cat([mine[i][:before], theirs.index_select(0, source)])

    def follow(self, order: npt.NDArray[np.int64]) -> None:
        """Row i becomes the former row order[i]."""
        self._each(lambda t: t.index_select(0, torch.from_numpy(order).to(t.device)))

    def fit(self, rows: int) -> None:
        """Resize to exactly this many rows; those beyond the real ones have no meaning."""

        def fitted(tensor: torch.Tensor) -> torch.Tensor:
            if len(tensor) >= rows:
                return tensor[:rows]
            return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])

        self._each(fitted)

    def _each(self, change: Any) -> None:
        for layer in self.layers.values():
            for states in (layer.conv_states, layer.recurrent_states):
                for i, tensor in states.items():
                    if tensor is not None:
                        states[i] = change(tensor)


def _fill(layer: Any, state: State) -> None:
    for i, (convolved, recurrent) in enumerate(state):
        layer.conv_states[i], layer.recurrent_states[i] = convolved, recurrent
        layer.is_conv_states_initialized[i] = convolved is not None
        layer.is_recurrent_states_initialized[i] = recurrent is not None
        layer.has_previous_state[i] = True
        layer.conv_kernel_size[i] = None if convolved is None else convolved.shape[-1]
        for tensor in (convolved, recurrent):
            if tensor is not None:
                layer.device, layer.dtype = tensor.device, tensor.dtype


def _part(tensor: torch.Tensor | None, part: slice) -> torch.Tensor | None:
    return None if tensor is None else tensor[part].clone()
