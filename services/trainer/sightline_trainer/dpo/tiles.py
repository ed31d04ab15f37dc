"""Tiles: which prompts of a pack, and which of their branches, share one attention call.

A tile has prompts of similar length, padded on the right to the longest: causal attention never looks there. Its
branches are processed a few at a time, as separate rows, each with the keys of its prefix before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sightline_trainer.dpo.gathered import Gathered

# Branches per row: each pays for the keys of the others, which a mask hides, and saves a copy of the prefix's keys and
# values.
TOGETHER = 4
# A prompt joins a tile while the padding stays below this share of the tokens.
SLACK = 0.15


@dataclass(frozen=True)
class Group:
    """A prompt and its responses: lengths in packed tokens.

    Attributes:
        blocks: [prefix] which block of tokens that see each other both ways a token is in, -1 in none.
    """

    prefix: int
    branches: tuple[int, ...]
    blocks: Tensor | None = field(default=None, compare=False)

    @property
    def length(self) -> int:
        return self.prefix + sum(self.branches)


@dataclass(frozen=True)
class Tile:
    """Rows of one length, as places in the pack.

    Attributes:
        prefixes: groups * P. queries: runs * B tokens of the runs of branches. keys: runs * (P + B), a run's prefix and
            its own.
        mask: [runs, 1, B, P + B] what a run's tokens see: the prefix, and their own branch so far.
        ends: the last token of each prefix. ends_mask: [groups, 1, 1, P] what it sees.
        both_ways: [groups, 1, P, P] what the prefixes' tokens see, if that is more than the tokens before them.
    """

    groups: int
    prefixes: Gathered
    runs: int
    queries: Gathered
    keys: Gathered
    mask: Tensor
    ends: Gathered
    ends_mask: Tensor
    both_ways: Tensor | None = None

    def to(self, device: torch.device) -> Tile:
        """The same, there."""
        names = ["prefixes", "queries", "keys", "mask", "ends", "ends_mask"]
        names += ["both_ways"] if self.both_ways is not None else []
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class Tiling:
    """All tiles, and where tokens are in the concatenated outputs of their calls.

    Attributes:
        order: of the T tokens of the pack.
        scored: the S tokens of the pack that predict a response's token: the last of each prefix, and all of branches.
        scored_order: of these, in outputs of calls with the prefixes' ends in place of the prefixes.
    """

    tiles: tuple[Tile, ...]
    order: Gathered
    scored: Gathered
    scored_order: Gathered


def tile(groups: Sequence[Group], device: torch.device) -> Tiling:
    """The tiling of consecutive groups."""
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.length)
    order, scored = _Order(starts[-1]), _Order(starts[-1])
    tiles = [
        _tile([(starts[at], groups[at]) for at in members], order, scored).to(device) for members in _alike(groups)
    ]
    tokens = (scored.places >= 0).nonzero()[:, 0]
    rows = (order.places, tokens, scored.places[tokens])
    return Tiling(tuple(tiles), *(Gathered.of(each, torch.zeros_like(each)).to(device) for each in rows))


class _Order:
    """The places of tokens in concatenated outputs, -1 until they are known."""

    def __init__(self, tokens: int) -> None:
        self.places = torch.full((tokens,), -1)
        self._done = 0

    def put(self, token: int, count: int, at: int) -> None:
        """`count` tokens from `token` are at this place of the next outputs."""
        self.places[token : token + count] = torch.arange(self._done + at, self._done + at + count)

    def done(self, outputs: int) -> None:
        """So many outputs are laid out."""
        self._done += outputs


def _alike(groups: Sequence[Group]) -> list[list[int]]:
    """The groups' numbers, with similar lengths together."""
    tiles: list[list[int]] = []
    total = 0
    for at in sorted(range(len(groups)), key=lambda at: (groups[at].prefix, groups[at].length)):
        length = groups[at].prefix
        if tiles and length * (len(tiles[-1]) + 1) <= (1 + SLACK) * (total + length):
            tiles[-1].append(at)
            total += length
        else:
            tiles.append([at])
            total = length
    return tiles


def _tile(members: Sequence[tuple[int, Group]], order: _Order, scored: _Order) -> Tile:
    """One tile; adds the places of its outputs to `order`, and with only the prefixes' ends to `scored`."""
    most = max(group.prefix for _, group in members)
    runs = [(start, group, run) for start, group in members for run in _runs(group)]
    width = max((sum(lengths) for _, _, (_, _, lengths) in runs), default=0)
    prefixes, first_round = torch.zeros(len(members), most, dtype=torch.long), torch.full((len(members), most), -1)
    for row, (start, group) in enumerate(members):
        prefixes[row, : group.prefix] = torch.arange(start, start + group.prefix)
        first_round[row, : group.prefix] = 0
        order.put(start, group.prefix, row * most)
        scored.put(start + group.prefix - 1, 1, row)
    order.done(prefixes.numel())
    scored.done(len(members))
    queries = torch.zeros(len(runs), width, dtype=torch.long)
    keys = torch.zeros(len(runs), most + width, dtype=torch.long)
    asked, looked_at = torch.full_like(queries, -1), torch.full_like(keys, -1)
    mask = torch.zeros(len(runs), 1, width, most + width, dtype=torch.bool)
    for row, (start, group, (number, skipped, lengths)) in enumerate(runs):
        count, first = sum(lengths), start + group.prefix + skipped
        asked[row, :count], looked_at[row, : group.prefix], looked_at[row, most : most + count] = 0, number, number
        queries[row, :count] = torch.arange(first, first + count)
        keys[row, : group.prefix] = torch.arange(start, start + group.prefix)
        keys[row, most : most + count] = queries[row, :count]
        mask[row, 0, :, : group.prefix] = True  # padding too: a token that sees nothing becomes NaN
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        mask[row, 0, :count, most : most + count] = (owner[:, None] == owner[None, :]).tril()
        for each in (order, scored):
            each.put(first, count, row * width)
    for each in (order, scored):
        each.done(queries.numel())
    sizes = torch.tensor([group.prefix for _, group in members])
    ends = prefixes.gather(1, sizes[:, None] - 1)[:, 0]
    return Tile(
        len(members),
        Gathered.of(prefixes.flatten(), first_round.flatten()),
        len(runs),
        Gathered.of(queries.flatten(), asked.flatten()),
        Gathered.of(keys.flatten(), looked_at.flatten()),
        mask,
        Gathered.of(ends, torch.zeros_like(ends)),
        (torch.arange(most) < sizes[:, None])[:, None, None],
        _both_ways([group for _, group in members], most),
    )


def _both_ways(groups: Sequence[Group], most: int) -> Tensor | None:
    """[groups, 1, most, most]: the tokens before, and those of the same block; None if no group has blocks."""
    if all(group.blocks is None for group in groups):
        return None
    blocks = torch.full((len(groups), most), -1)
    for row, group in enumerate(groups):
        if group.blocks is not None:
            blocks[row, : group.prefix] = group.blocks
    same = (blocks[:, :, None] == blocks[:, None, :]) & (blocks >= 0)[:, :, None]
    return (same | torch.ones(most, most, dtype=torch.bool).tril())[:, None]


def _runs(group: Group) -> list[tuple[int, int, list[int]]]:
    """The nonempty branches, TOGETHER at a time: their number, the number of tokens before them, and their lengths."""
    long = [length for length in group.branches if length]
    runs = [long[at : at + TOGETHER] for at in range(0, len(long), TOGETHER)]
    return [(number, sum(map(sum, runs[:number])), run) for number, run in enumerate(runs)]
