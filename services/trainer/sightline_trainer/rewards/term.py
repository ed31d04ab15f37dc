"""Term: one part of a reward. The reward of a candidate is the weighted sum of its terms, or of their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field
from sightline_sampler.client import AsyncSamplerClient
from sightline_scorer.client import AsyncScorerClient

from sightline_trainer.candidates.candidate import Candidate
from sightline_trainer.parts import Part
from sightline_trainer.prompts import Prompt
from sightline_trainer.rewards.score import Score

if TYPE_CHECKING:
    from sightline_trainer.recipe import Recipe


@dataclass(frozen=True)
class Bench:
    """What terms stand on."""

    recipe: Recipe
    sampler: AsyncSamplerClient
    scorer: AsyncScorerClient
    dataset: Path


class Term(Protocol):
    """Values candidates: a score each, in order, whose ``reward`` is the term's value."""

    async def __call__(self, prompt: Prompt, candidates: Sequence[Candidate], *, version: int) -> list[Score]: ...


class TermPart(Part):
    """Settings of a term, and how it is made from them."""

    weight: float = Field(1.0, description="Factor in the sum; below 0 the term is a cost.")

    def open(self, bench: Bench) -> Term:
        """The term."""
        raise NotImplementedError
