"""Which rows of a pack an attention call gets, and how their gradients are added back.

A row that several branches attend to (a prefix's key) is gathered several times, and its gradients are added round by
round. Within a round no row occurs twice, so no atomic additions are needed, which are slow on a GPU in bfloat16.
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
        rows: [n] rows of the pack, in gathering order. Padding may be any row.
        rounds: (rows [m] without duplicates, their places among the n [m]); together, all rows that are not padding.
    """

    rows: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(rows: Tensor, round_of: Tensor) -> Gathered:
        """From each row's round, -1 for padding."""
        most = int(round_of.max()) + 1 if len(round_of) else 0
        found = ((round_of == number).nonzero()[:, 0] for number in range(most))
        return Gathered(rows, tuple((rows[at], at) for at in found))

    def to(self, device: torch.device) -> Gathered:
        """The same, there."""
        return Gathered(self.rows.to(device), tuple((rows.to(device), at.to(device)) for rows, at in self.rounds))

    def pick(self, values: Tensor) -> Tensor:
        """[n, ...] from the pack's [T, ...]. Padding gets no gradient: no real token may attend to it."""
        picked: Tensor = _Pick.apply(values, self.rows, self.rounds)
        return picked

    def put(self, values: Tensor, count: int) -> Tensor:
        """[count, ...] with `values` [n, ...] at the rows, which must occur once, and zeros elsewhere."""
        return values.new_zeros(count, *values.shape[1:]).index_copy(0, self.rows, values)


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
