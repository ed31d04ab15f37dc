"""Keys and values of the rows being decoded: one buffer per layer, written in place, each row at its own position.

transformers' dynamic cache needs all rows to be equally long (left-padded) and copies itself whole at every token. Here
a row's token at position p always lies in slot p, so a row's attention sees the same numbers in the same slots whatever
else is in the batch; rows come and go by copying just themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

SLOT_STEP = 8  # a step sees a multiple of this many slots

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer, keys and values (rows, heads, slots, dim)."""


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not less than `number`."""
    return -(-number // step) * step


class _RowLayer(CacheLayerMixin):
    is_sliding = False
    is_compileable = False

    def __init__(self, owner: RowCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.owner = owner
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts one token per row at the row's position, and gives all slots in sight."""
        owner = self.owner
        self.keys[owner.rows, :, owner.positions] = key_states[:, :, 0]
        self.values[owner.rows, :, owner.positions] = value_states[:, :, 0]
        count, slots = owner.rows.shape[0], owner.slots
        return self.keys[:count, :, :slots], self.values[:count, :, :slots]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots in sight, and their offset."""
        return self.owner.slots, 0

    def get_seq_length(self) -> int:
        """Slots in sight."""
        return self.owner.slots

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class RowCache(Cache):
    """A transformers cache for rows of unequal length, one token per row and step."""

    def __init__(self, like: Layers, rows: int, slots: int) -> None:
        """Room for `rows` rows of `slots` slots, with the heads, sizes and types of `like`."""
        super().__init__(layers=[_RowLayer(self, *self._empty(k, v, rows, slots)) for k, v in like])
        self.rows: torch.Tensor = torch.empty(0, dtype=torch.long)
        self.positions: torch.Tensor = torch.empty(0, dtype=torch.long)
        self.slots = 0

    @staticmethod
    def _empty(keys: torch.Tensor, values: torch.Tensor, rows: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Zeros, not garbage: an unused slot is masked, and 0 times NaN would still be NaN.
        return (
            keys.new_zeros((rows, keys.shape[1], slots, keys.shape[3])),
            values.new_zeros((rows, values.shape[1], slots, values.shape[3])),
        )

    @staticmethod
    def slot_bytes(like: Layers) -> int:
        """Bytes that one slot of one row takes, over all layers."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for pair in like for t in pair)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and slots of the buffers."""
        keys = self.layers[0].keys
        return int(keys.shape[0]), int(keys.shape[2])

    def grow(self, rows: int, slots: int) -> None:
        """Makes the buffers at least this large, keeping what is in them."""
        have_rows, have_slots = self.room
        if rows <= have_rows and slots <= have_slots:
            return
        for layer in self.layers:
            keys, values = self._empty(layer.keys, layer.values, max(rows, have_rows), max(slots, have_slots))
            keys[:have_rows, :, :have_slots] = layer.keys
            values[:have_rows, :, :have_slots] = layer.values
            layer.keys, layer.values = keys, values

    def insert(self, start: int, prefix: Layers, source: torch.Tensor) -> None:
        """Fills rows `start`.. with rows `source` of a prefix."""
        count = source.shape[0]
        for layer, (keys, values) in zip(self.layers, prefix, strict=True):
            length = keys.shape[2]
            layer.keys[start : start + count, :, :length] = keys[source]
            layer.values[start : start + count, :, :length] = values[source]

    def move(self, to: Sequence[int], source: Sequence[int], slots: int) -> None:
        """Copies the first `slots` slots of rows `source` over rows `to`."""
        if not to:
            return
        device = self.layers[0].keys.device
        into, out_of = torch.tensor(to, device=device), torch.tensor(source, device=device)
        for layer in self.layers:
            layer.keys[into, :, :slots] = layer.keys[out_of, :, :slots]
            layer.values[into, :, :slots] = layer.values[out_of, :, :slots]

    def aim(self, positions: torch.Tensor, slots: int) -> None:
        """Sets where the next token of each of the first rows goes (rows,), and how many slots are in sight."""
        self.rows = torch.arange(positions.shape[0], device=positions.device)
        self.positions = positions
        self.slots = slots
