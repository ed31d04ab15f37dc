"""Keys and values of prompts that rows share: prompts of similar length are in one tensor.

A decoding step is a chain of small products, each of which costs a few microseconds to start, however small it is. So
prompts are not attended to one by one: a pool holds all prompts of about one length, (stems, heads, width, dim) per
layer, and a layer's attention over all of them is one batched product, for any number of prompts.

A stem's width depends only on its own length, so a row's bits do not depend on other prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import torch

WIDTH_STEP = 64  # stems whose lengths round up to the same multiple share a pool; padding is masked
MIN_ROWS = 4  # fewer rows use another kernel on a CPU, with other last bits
_SPARSE = 4  # with more places per row than this, stems with many rows are attended to separately

Layers: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer, keys and values (rows, heads, slots, dim)."""


@dataclasses.dataclass(slots=True, eq=False)
class Stem:
    """A prompt's place in its pool; `rows` are the batch numbers of the rows that share it, ascending."""

    pool: StemPool
    place: int
    length: int
    rows: list[int] = dataclasses.field(default_factory=list)

    @property
    def layers(self) -> Layers:
        """Keys and values (1, heads, length, dim) of each layer."""
        mine = slice(self.place, self.place + 1)
        return [(keys[mine, :, : self.length], values[mine, :, : self.length]) for keys, values in self.pool.layers]


@dataclasses.dataclass(slots=True)
class StemView:
    """A layer's view of a pool.

    Attributes:
        keys: (stems, heads, width, dim).
        values: as `keys`.
        mask: additive, (stems, 1, 1, width).
        gather: (stems * most,) the row in each place of a stem; an empty place repeats row 0.
        rows: the rows of the batch in this view.
        places: (rows,) their positions in `gather`.
        most: number of places per stem.
    """

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    gather: torch.Tensor
    rows: torch.Tensor | slice
    places: torch.Tensor
    most: int


@dataclasses.dataclass(slots=True)
class Route:
    """Where the rows of a step find the parts of their stems.

    Attributes:
        where: (rows,) the place of each row among the places of all stems.
        first: the first place of each view.
        places: number of places.
    """

    where: torch.Tensor
    first: list[int]
    places: int
    _parts: dict[tuple[int, int], tuple[torch.Tensor, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def through(cls, views: Sequence[StemView], rows: int) -> Route:
        """The route of this many rows through these views, which name each row once."""
        where = torch.zeros(rows, dtype=torch.long, device=views[0].gather.device)
        first, places = [], 0
        for view in views:
            where[view.rows] = view.places + places
            first.append(places)
            places += view.gather.shape[0]
        return cls(where, first, places)

    def parts(self, heads: int, dim: int) -> tuple[torch.Tensor, ...]:
        """Largest product, sum and weighted values of each place: all layers of a step use the same tensors."""
        if (heads, dim) not in self._parts:
            made = self.where.new_empty((self.places, heads, dim + 2), dtype=torch.float32)
            top, mass, out = made.view(-1).split([self.places * heads * n for n in (1, 1, dim)])
            self._parts[heads, dim] = (top, mass, out)
        return self._parts[heads, dim]


@dataclasses.dataclass(slots=True)
class _Plan:
    """A view without its layer: stems `first`..`last` of the pool."""

    first: int
    last: int
    gather: torch.Tensor
    rows: torch.Tensor | slice
    places: torch.Tensor
    most: int


class StemPool:
    """Stems of one width, without gaps: the last one takes the place of a removed one."""

    def __init__(self, like: Layers, width: int) -> None:
        self.width = width
        self.layers: Layers = [(_room(keys, 0, width), _room(values, 0, width)) for keys, values in like]
        self.stems: list[Stem] = []
        self._mask = torch.empty(0)
        self._plans: list[_Plan] | None = None

    def add(self, prefix: Layers, rows: list[int]) -> list[Stem]:
        """Copy in rows of a prefix."""
        start, length = len(self.stems), prefix[0][0].shape[2]
        end, have = start + len(rows), self.layers[0][0].shape[0]
        if end > have:
            self._resize(max(end, have + have // 4))
        index = torch.tensor(rows, device=prefix[0][0].device)
        for mine, theirs in zip(self.layers, prefix, strict=True):
            for into, out_of in zip(mine, theirs, strict=True):
                torch.index_select(out_of, 0, index, out=into[start:end, :, :length])
        added = [Stem(self, place, length) for place in range(start, end)]
        self.stems += added
        self._set_mask()
        return added

    def keep(self, wanted: set[Stem]) -> None:
        """Remove the other stems."""
        gone = [stem for stem in self.stems if stem not in wanted]
        for stem in sorted(gone, key=lambda stem: -stem.place):
            last = self.stems.pop()
            if last is not stem:
                for pair in self.layers:
                    for tensor in pair:
                        tensor[stem.place].copy_(tensor[last.place])
                last.place = stem.place
                self.stems[stem.place] = last
        if gone and 4 * len(self.stems) < self.layers[0][0].shape[0]:
            self._resize(len(self.stems))
        if gone and self.stems:
            self._set_mask()

    def forget_rows(self) -> None:
        """Note that the stems' rows have changed."""
        self._plans = None

    def views(self, layer: int) -> list[StemView]:
        """A layer's view."""
        if self._plans is None:
            self._plans = self._planned()
        keys, values = self.layers[layer]
        return [
            StemView(
                keys[plan.first : plan.last],
                values[plan.first : plan.last],
                self._mask[plan.first : plan.last],
                plan.gather,
                plan.rows,
                plan.places,
                plan.most,
            )
            for plan in self._plans
        ]

    def _planned(self) -> list[_Plan]:
        counts = [len(stem.rows) for stem in self.stems]
        total, alone = sum(counts), set[int]()
        if len(counts) * max(counts) > _SPARSE * max(total, MIN_ROWS):
            limit = max(MIN_ROWS, -(-2 * total // len(counts)))
            alone = {place for place, count in enumerate(counts) if count > limit}
        plans = [self._plan(place, place + 1, {place}) for place in sorted(alone)]
        rest = {place for place, count in enumerate(counts) if count} - alone
        return [*plans, self._plan(0, len(counts), rest)] if rest else plans

    def _plan(self, first: int, last: int, members: set[int]) -> _Plan:
        device = self.layers[0][0].device
        least = 1 if device.type == "cuda" else MIN_ROWS
        most = max(least, *(len(self.stems[place].rows) for place in members))
        gather = [0] * ((last - first) * most)
        rows, places = [], []
        for place in sorted(members):
            for at, row in enumerate(self.stems[place].rows, (place - first) * most):
                gather[at] = row
                rows.append(row)
                places.append(at)
        order = sorted(range(len(rows)), key=rows.__getitem__)
        rows, places = [rows[i] for i in order], [places[i] for i in order]
        together = rows[-1] - rows[0] + 1 == len(rows)
        return _Plan(
            first,
            last,
            torch.tensor(gather, device=device),
            slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows, device=device),
            torch.tensor(places, device=device),
            most,
        )

    def _resize(self, room: int) -> None:
        have = min(len(self.stems), room)
        for number, (keys, values) in enumerate(self.layers):
            other = _room(keys, room, self.width), _room(values, room, self.width)
            other[0][:have], other[1][:have] = keys[:have], values[:have]
            self.layers[number] = other

    def _set_mask(self) -> None:
        keys = self.layers[0][0]
        lengths = torch.tensor([stem.length for stem in self.stems], device=keys.device)[:, None, None, None]
        beyond = torch.arange(self.width, device=keys.device) >= lengths
        self._mask = torch.zeros(beyond.shape, dtype=keys.dtype, device=keys.device).masked_fill_(beyond, -torch.inf)


def _room(like: torch.Tensor, stems: int, width: int) -> torch.Tensor:
    # Zeros instead of garbage: padding is masked, but 0 times NaN would still be NaN.
    return like.new_zeros((stems, like.shape[1], width, like.shape[3]))
