"""Turns an iteration's rows of a released set into pairs.

They pass the gate, the recipe's reward and its filters like all candidates, shard by shard in `iterations/*/released/`,
so a killed run resumes them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline_trainer.candidates.released import ReleasedRule, ReleasedSource
from sightline_trainer.left_out import counts_of
from sightline_trainer.pairs.filter import Filter
from sightline_trainer.records.released import Released
from sightline_trainer.rollout import Rollout
from sightline_trainer.session import Session

if TYPE_CHECKING:
    from sightline_trainer.pairs.build import PairBuilder

RULE = "released"


class ReleasedPairs:
    """The rows of one iteration."""

    def __init__(self, directory: Path, rows: Sequence[Released], iteration: int) -> None:
        self.rows = rows
        self.iteration = iteration
        self.rollout = Rollout(directory / "released")

    def complete(self) -> bool:
        """Whether all are scored."""
        return self.rollout.complete(self.rows)

    async def collect(self, session: Session, version: int, progress: Callable[[int, int], None]) -> None:
        """Score them. Raises SightlineError as `Rollout.collect`."""
        if not self.rows:
            return
        await self.rollout.collect(
            self.rows,
            [ReleasedSource(session.gate)],
            session.judge(),
            session.gate,
            iteration=self.iteration,
            version=version,
            in_flight=await session.in_flight(),
            progress=progress,
        )

    def pairs(
        self, filters: Mapping[str, Filter], total: PairBuilder, embeddings: Mapping[str, Sequence[float]]
    ) -> Iterator[dict[str, Any]]:
        """Rows of pairs.parquet; after the last one, the outcomes are added to those of `total`.

        Args:
            embeddings: embeddings of pictures by prompt id, if the loss needs them.
        """
        from sightline_trainer.pairs.build import PairBuilder

        rows = {row.id: row for row in self.rows}
        builder = PairBuilder(filters, {RULE: ReleasedRule(rows)}, iteration=self.iteration, embeddings=embeddings)
        builder.counts.update(counts_of(self.rollout.dropped()))
        yield from builder.build(rows, self.rollout.read())
        total.add(builder)
        if self.rows:
            total.counts["pairs_released"] += builder.counts["pairs"]
