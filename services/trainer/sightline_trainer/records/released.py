"""Released: a row of a released preference set: a prompt with answers, some of which are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sightline_trainer.records.prompt import Prompt


@dataclass(frozen=True)
class Released(Prompt):
    """A prompt with its answers.

    Attributes:
        answers: two or more.
        marks: the set's own mark of each answer; 1 and 0 for chosen and rejected.
        kinds: the set's name for each answer: chosen, rejected, gt, llm-hal, a model's name.
    """

    answers: Sequence[str] = ()
    marks: Sequence[float] = ()
    kinds: Sequence[str] = ()
