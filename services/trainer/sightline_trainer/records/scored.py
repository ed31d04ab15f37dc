"""Scored: a candidate with its reward, which is what filters and rules look at."""

from __future__ import annotations

from dataclasses import dataclass

from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score


@dataclass(frozen=True)
class Scored:
    """A candidate with its reward."""

    candidate: Response
    score: Score

    @property
    def reward(self) -> float:
        """The reward.

        Raises:
            ValueError: it has none; such candidates are dropped before rules see them.
        """
        if self.score.reward is None:
            raise ValueError(f"candidate {self.candidate.index} of {self.candidate.prompt_id} has no reward")
        return self.score.reward
