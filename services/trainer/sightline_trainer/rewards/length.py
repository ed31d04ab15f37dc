"""`length`: tokens of a text, or their distance from a target. A length term keeps another term honest."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term, TermContext, TermPart


class Length(TermPart):
    """Tokens of the text, or minus their distance from a target."""

    target: int | None = Field(
        None, ge=1, description="Target length in tokens; null: the value is the number of tokens."
    )

    def open(self, context: TermContext) -> Term:
        return LengthTerm(self.target)


class LengthTerm:
    """Counts tokens."""

    def __init__(self, target: int | None) -> None:
        self.target = target

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        counts = [len(candidate.token_ids) for candidate in candidates]
        return [Score(float(count if self.target is None else -abs(count - self.target))) for count in counts]
