"""Gathered: which rows of a pack a call of attention gets, and how the gradients of its rows go back to them.

A row that several branches look at, a prefix's key, is handed out several times, and its gradients are added up round
by round. Within a round no row stands twice, so nothing is added atomically, which a GPU does slowly in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gathered:
    """Rows by their numbers.

    Attributes:
        rows: [n] of the pack, in the order in which they are handed out. What only fills up is any row.
        rounds: (rows [m] without a double, where they stand among the n [m]), together all that does not fill up.
    """

    rows: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(rows: Tensor, round_of: Tensor) -> Gathered:
        """From each row's round, -1 for what fills up."""
        most = int(round_of.max()) + 1 if len(round_of) else 0
        found = ((round_of == number).nonzero()[:, 0] for number in range(most))
        return Gathered(rows, tuple((rows[at], at) for at in found))

    def to(self, device: torch.device) -> Gathered:
        """The same, there."""
        return Gathered(self.rows.to(device), tuple((rows.to(device), at.to(device)) for rows, at in self.rounds))

    def pick(self, values: Tensor) -> Tensor:
        """[n, ...] of the pack's [T, ...]. What fills up gets no gradient: nothing that counts may look at it."""
        picked: Tensor = _Pick.apply(values, self.rows, self.rounds)
        return picked


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, rounds: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.rounds, ctx.shape = rounds, values.shape
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = grad.new_zeros(ctx.shape)
        for number, (rows, at) in enumerate(ctx.rounds):
            part = grad.index_select(0, at)
            if number:
                part += total.index_select(0, rows)
            total.index_copy_(0, rows, part)
        return total, None, None
