"""Term: one part of a reward. The reward of a candidate is the weighted sum of its terms, or of their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import Field
from sightline.sampler import AsyncSamplerClient
from sightline.scorer import AsyncScorerClient

from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.sections import RewardService


@dataclass(frozen=True)
class TermContext:
    """What terms stand on."""

    scoring: RewardService
    sampler: AsyncSamplerClient
    scorer: AsyncScorerClient
    dataset: Path


class Term(Protocol):
    """Values candidates: a score each, in order, whose `reward` is the term's value."""

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]: ...


class TermPart(Part):
    """Settings of a term, and how it is made from them."""

    weight: float = Field(1.0, description="Factor in the sum; below 0 the term is a cost.")

    def open(self, context: TermContext) -> Term:
        """The term."""
        raise NotImplementedError
