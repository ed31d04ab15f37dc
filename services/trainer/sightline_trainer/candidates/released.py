"""The answers of a released set's row as candidates, and the rule that pairs them as the set judged them.

They pass the gate, the recipe's reward and its filters, like all candidates. The set decides which side is chosen,
regardless of the reward; a `gap` filter can drop pairs that the reward does not separate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.candidates.source import SourceRequest
from sightline_trainer.pairs.rule import Fault, Picked
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.released import Released
from sightline_trainer.records.response import Response
from sightline_trainer.row_gate import RowGate

SOURCE = "released"
"""Prefix of their sources, followed by the set's name for the answer: released:rejected."""


class ReleasedSource:
    """The answers, tokenised as if the policy had written them."""

    def __init__(self, gate: RowGate) -> None:
        self.gate = gate

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        assert isinstance(prompt, Released)
        return [
            unsampled(self.gate, prompt, prompt.prompt, text, index=len(ask.made) + at, source=f"{SOURCE}:{kind}")
            for at, (text, kind) in enumerate(zip(prompt.answers, prompt.kinds, strict=True))
        ]


class ReleasedRule:
    """Pairs every answer with every answer that the set marks lower."""

    def __init__(self, rows: Mapping[str, Released]) -> None:
        self.rows = rows

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        """The pairs of one row."""
        picked = Picked()
        for one, other in combinations(group, 2):
            marks = self.rows[one.prompt_id].marks
            if marks[one.index] != marks[other.index]:
                better, worse = (one, other) if marks[one.index] > marks[other.index] else (other, one)
                picked.offer(better, worse, fault, 1.0)
        if not picked.pairs and not picked.dropped:
            picked.lacking = "too_few"
        return picked

    def rejected_images(self, prompt: Prompt, iteration: int) -> list[bytes]:
        """None: sets name one picture for all answers."""
        return []
