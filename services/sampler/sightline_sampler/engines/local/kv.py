"""Keys and values of the rows being decoded: written in place, each row at its own position.

transformers' dynamic cache needs rows of equal length (left-padded) and copies itself completely at every token. Here a
row's token at position p is always in slot p, so a row's attention sees the same numbers in the same slots, independent
of the rest of the batch; adding or removing rows copies only these rows.

Reading keys and values is the largest cost of decoding many rows, and candidates end at very different lengths. So rows
are in segments: a segment has a number of slots, and a row that outgrows its segment moves to the next wider one. So no
row reads much more than its own length because another row is long.

Candidates of one prompt share its keys and values. If a prompt is long (as with an image), they are not copied for each
row: the rows share a stem (`stems`), and a row's slots are only for its own tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from sightline_sampler.engines.local.states import Kept, RowStates
from sightline_sampler.engines.local.stems import WIDTH_STEP as STEM_STEP
from sightline_sampler.engines.local.stems import Layers, Route, Stem, StemPool, StemView

SLOT_STEP = 8  # a step sees a multiple of this many slots
WIDTH_STEP = 32  # the narrowest segment, and the minimum difference of two, since moving a row copies it
# From this length on, candidates share their prompt. This depends only on the prompt's length, not on K: the sums for a
# shared and a copied prompt have another order, and a candidate's bits must not depend on K.
STEM_SLOTS = 128

Order: TypeAlias = npt.NDArray[np.int64]
"""A new order of rows: row i is row order[i] of the old order."""


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `number`."""
    return -(-number // step) * step


def width_for(slots: int) -> int:
    """The width of the segment for a row that needs `slots` slots: 32, 64, ...; from 256 on in steps of an eighth."""
    width = WIDTH_STEP
    while width < slots:
        width += round_up(max(WIDTH_STEP, width // 8), WIDTH_STEP)
    return width


def shares(prompt_slots: int) -> bool:
    """Whether candidates of a prompt with this length share its keys and values."""
    return prompt_slots >= STEM_SLOTS


@dataclasses.dataclass(slots=True)
class SegmentView:
    """A step's view of a segment: rows `start`..`stop` of the batch, their slots in one layer, and the valid ones.

    `positions` are the slots of the rows' new tokens.
    """

    start: int
    stop: int
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


class LayerSlots(list[SegmentView]):
    """Keys and values of one layer, segment by segment; passes through a model's attention instead of a tensor.

    `stems` are views of shared prompts, which come before the rows' own slots; None if nothing is shared. With fused
    kernels, the attention writes the `new` keys and values, and `route` leads from the rows to their stems.
    """

    stems: list[StemView] | None = None
    new: tuple[torch.Tensor, torch.Tensor] | None = None
    route: Route | None = None


class _Segment:
    """Rows with up to `width` slots. `rows` are their numbers before the last change."""

    def __init__(self, like: Layers, width: int) -> None:
        self.width = width
        self.layers: Layers = [(_empty(k, 0, width), _empty(v, 0, width)) for k, v in like]
        self.count = 0
        self.slots = 0
        self.positions = torch.empty(0, dtype=torch.long)
        self.numbers = torch.empty(0, dtype=torch.long)
        self.mask = torch.empty(0)

    def append(self, source: Layers, rows: torch.Tensor) -> None:
        """Add rows of `source`, which may have fewer slots, or none."""
        end = self.count + rows.shape[0]
        have = self.layers[0][0].shape[0]
        if end > have:
            room = max(end, have + have // 4)
            for number, (keys, values) in enumerate(self.layers):
                wider = _empty(keys, room, self.width), _empty(values, room, self.width)
                wider[0][: self.count], wider[1][: self.count] = keys[: self.count], values[: self.count]
                self.layers[number] = wider
        slots = source[0][0].shape[2]
        for mine, theirs in zip(self.layers, source, strict=True):
            for into, out_of in zip(mine, theirs, strict=True):
                torch.index_select(out_of, 0, rows, out=into[self.count : end, :, :slots])
        self.count = end

    def keep(self, kept: npt.NDArray[np.bool_]) -> Order:
        """Drop rows; the last ones move into the holes."""
        left = int(kept.sum())
        to, source = np.flatnonzero(~kept[:left]), np.flatnonzero(kept[left:]) + left
        if len(to):
            device = self.layers[0][0].device
            into, out_of = torch.from_numpy(to).to(device), torch.from_numpy(source).to(device)
            for pair in self.layers:
                for tensor in pair:
                    tensor.index_copy_(0, into, tensor.index_select(0, out_of))
        order = np.arange(left)
        order[to] = source
        self.count = left
        return order

    def aim(self, lengths: npt.NDArray[np.int64]) -> None:
        """Set the slot of each row's next token, and what the rows may see."""
        keys = self.layers[0][0]
        self.slots = min(self.width, round_up(int(lengths.max()) + 1, SLOT_STEP))
        self.positions = torch.from_numpy(lengths).to(keys.device)
        self.numbers = torch.arange(self.count, device=keys.device)
        later = torch.arange(self.slots, device=keys.device) > self.positions[:, None, None, None]
        self.mask = torch.zeros(later.shape, dtype=keys.dtype, device=keys.device).masked_fill_(later, -torch.inf)


class TokenLayer(CacheLayerMixin):
    """A cache's layer for one token per row; `update` and `get_seq_length` are its own."""

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Visible slots, and their offset."""
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        """It has no own limit."""
        return -1


class _RowLayer(TokenLayer):
    def __init__(self, owner: RowCache, number: int) -> None:
        super().__init__()
        self.owner = owner
        self.number = number

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Write one token per row at the row's position, and return the visible slots (`LayerSlots`, twice)."""
        parts, start = LayerSlots(), 0
        for segment in self.owner.segments:
            stop = start + segment.count
            keys, values = segment.layers[self.number]
            if not self.owner.fused:
                keys[segment.numbers, :, segment.positions] = key_states[start:stop, :, 0]
                values[segment.numbers, :, segment.positions] = value_states[start:stop, :, 0]
            seen = slice(0, segment.count), slice(None), slice(0, segment.slots)
            parts.append(SegmentView(start, stop, keys[seen], values[seen], segment.mask, segment.positions))
            start = stop
        if self.owner.shared:
            parts.stems = self.owner.stem_views(self.number)
        if self.owner.fused:
            parts.new = key_states, value_states
            parts.route = self.owner.route() if parts.stems else None
        return parts, parts

    def get_seq_length(self) -> int:
        """Maximum visible slots."""
        return max((segment.slots for segment in self.owner.segments), default=0)


class RowCache(Cache):
    """A transformers cache for rows of unequal length, one token per row and step, for `attention.rowwise_attention`.

    Rows are numbered segment by segment. Methods that change their numbers return an `Order`.
    """

    def __init__(self, like: Kept, *, fused: bool = False) -> None:
        """An empty cache with the heads, sizes and types of `like`; rows share prompts of sufficient length.

        `fused` lets the attention write new tokens (`fused_attention`).
        """
        self.fused = fused
        self._states = RowStates(like.states)
        each: dict[int, Any] = {place: _RowLayer(self, number) for number, place in enumerate(like.places)}
        each |= self._states.layers
        super().__init__(layers=[each.get(place) or DummyLayer() for place in range(max(each) + 1)])
        self._like = [(keys[:0], values[:0]) for keys, values in like.layers]
        self.segments: list[_Segment] = []
        self.shared = shares(like.layers[0][0].shape[2])
        self._stem_of: list[Stem] = []  # by row, if shared
        self._pools: dict[int, StemPool] = {}  # by width
        self._moved = True  # whether rows moved since the stems got theirs
        self._route: Route | None = None

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(segment.count for segment in self.segments)

    @property
    def plain(self) -> bool:
        """Whether every layer has keys and values of its own, and no state."""
        return len(self.layers) == len(self._like)

    def slots(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> LayerSlots:
        """Write one token per row, (at least rows, heads, 1, dim), and return what a layer's rows may see."""
        seen: LayerSlots = self.layers[layer].update(key, value)[0]
        return seen

    @staticmethod
    def slot_bytes(like: Layers) -> int:
        """Bytes of one slot of one row, over all layers."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for pair in like for t in pair)

    def insert(self, kept: Kept, source: torch.Tensor) -> Order:
        """Add rows `source` of a prefix; in the returned order they come after the existing rows."""
        prefix = kept.layers
        numbers, slots = self._numbers(), prefix[0][0].shape[2]
        self._states.insert(self.count, kept.states, source)
        before, own = self.count, prefix
        if self.shared:
            wanted = source.tolist()
            different = list(dict.fromkeys(wanted))
            each = dict(zip(different, self._pool(slots).add(prefix, different), strict=True))
            self._stem_of += [each[row] for row in wanted]
            self._moved = True
            own, slots = [(k[:, :, :0], v[:, :, :0]) for k, v in prefix], 0
        segment = self._segment(width_for(slots + 1))
        segment.append(own, source)
        added = np.arange(before, before + source.shape[0])
        numbers[segment.width] = np.concatenate([numbers.get(segment.width, added[:0]), added])
        return self._settle(numbers)

    def keep(self, kept: npt.NDArray[np.bool_]) -> Order:
        """Drop the rows that are not kept."""
        numbers = self._numbers()
        for segment in self.segments:
            mine = numbers[segment.width]
            numbers[segment.width] = mine[segment.keep(kept[mine])]
        order = self._settle(numbers)
        if self.shared and not kept.all():
            left = set(self._stem_of)
            for pool in self._pools.values():
                pool.keep(left)
            self._pools = {width: pool for width, pool in self._pools.items() if pool.stems}
        return order

    def widen(self, lengths: npt.NDArray[np.int64]) -> Order:
        """Move rows without a free slot for the next token to a wider segment."""
        numbers, lengths = self._numbers(), self._own(lengths)
        for segment in reversed(self.segments.copy()):  # widest first: others move in after its check
            mine = numbers[segment.width]
            full = lengths[mine] >= segment.width
            if full.any():
                wider = self._segment(width_for(segment.width + 1))
                rows = np.flatnonzero(full)
                wider.append(segment.layers, torch.from_numpy(rows).to(segment.layers[0][0].device))
                numbers[wider.width] = np.concatenate([numbers.get(wider.width, mine[:0]), mine[rows]])
                numbers[segment.width] = mine[segment.keep(~full)]
        return self._settle(numbers)

    def gather(self, parents: Order) -> None:
        """Row i becomes a copy of the former row parents[i]; all rows are in one segment."""
        (segment,) = self.segments
        source = torch.from_numpy(parents).to(segment.layers[0][0].device)
        for pair in segment.layers:
            for tensor in pair:
                tensor[: segment.count] = tensor.index_select(0, source)
        self._states.follow(parents)

    def aim(self, lengths: npt.NDArray[np.int64], least: int = 1) -> None:
        """Set the slot of each row's next token (rows,), and so how much each segment sees.

        Args:
            lengths: number of tokens of each row.
            least: minimum rows for the model; rows beyond the real ones have no meaning.
        """
        self._states.fit(max(len(lengths), least))
        start, lengths = 0, self._own(lengths)
        for segment in self.segments:
            segment.aim(lengths[start : start + segment.count])
            start += segment.count

    def stems(self) -> list[Stem]:
        """The stems in use, each with the numbers of its rows."""
        if self._moved:
            for pool in self._pools.values():
                pool.forget_rows()
            for stem in self._stem_of:
                stem.rows = []
            for number, stem in enumerate(self._stem_of):
                stem.rows.append(number)
            self._moved, self._route = False, None
        return list(dict.fromkeys(self._stem_of))

    def stem_views(self, layer: int) -> list[StemView]:
        """A layer's view of the stems."""
        if self._moved:
            self.stems()
        return [view for pool in self._pools.values() for view in pool.views(layer)]

    def route(self) -> Route:
        """The rows' way to their stems; rows must share prompts."""
        if self._moved:
            self.stems()
        if self._route is None:
            self._route = Route.through(self.stem_views(0), len(self._stem_of))
        return self._route

    def saved(self) -> int:
        """Total slots that sharing saves."""
        return sum(stem.length for stem in self._stem_of) - sum(stem.length for stem in set(self._stem_of))

    def _own(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For rows with these numbers of tokens, how many are in their own slots."""
        if not self.shared:
            return lengths
        return lengths - np.fromiter((stem.length for stem in self._stem_of), np.int64, len(self._stem_of))

    def _numbers(self) -> dict[int, Order]:
        ends = np.cumsum([0, *(segment.count for segment in self.segments)])
        return {s.width: np.arange(a, b) for s, a, b in zip(self.segments, ends[:-1], ends[1:], strict=True)}

    def _segment(self, width: int) -> _Segment:
        for segment in self.segments:
            if segment.width == width:
                return segment
        segment = _Segment(self._like, width)
        self.segments = sorted([*self.segments, segment], key=lambda one: one.width)
        return segment

    def _pool(self, slots: int) -> StemPool:
        width = round_up(slots, STEM_STEP)
        if width not in self._pools:
            self._pools[width] = StemPool(self._like, width)
        return self._pools[width]

    def _settle(self, numbers: dict[int, Order]) -> Order:
        self.segments = [segment for segment in self.segments if segment.count]
        parts = [numbers[segment.width] for segment in self.segments]
        order = np.concatenate(parts) if parts else np.empty(0, np.int64)
        self._states.follow(order)
        if self.shared and not np.array_equal(order, np.arange(len(self._stem_of))):
            self._stem_of = [self._stem_of[number] for number in order.tolist()]
            self._moved = True
        return order


def _empty(like: torch.Tensor, rows: int, slots: int) -> torch.Tensor:
    # Zeros instead of garbage: an unused slot is masked, but 0 times NaN would still be NaN.
    return like.new_zeros((rows, like.shape[1], slots, like.shape[3]))
