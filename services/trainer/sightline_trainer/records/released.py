"""Released: a row of a preference set that somebody released: a prompt with answers, of which some are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sightline_trainer.records.prompt import Prompt


@dataclass(frozen=True)
class Released(Prompt):
    """A prompt with its answers.

    Attributes:
        answers: two or more.
        marks: what each is worth to whoever released the set; of chosen and rejected, 1 and 0.
        kinds: what the set calls each: chosen, rejected, gt, llm-hal, a model's name.
    """

    answers: Sequence[str] = ()
    marks: Sequence[float] = ()
    kinds: Sequence[str] = ()
