"""Filter: says why a prompt, a candidate or a pair is dropped, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class Filter(Protocol):
    """The faults that a filter finds; see `FilterPart`."""

    def prompt_fault(self, prompt: Prompt) -> str | None: ...

    def group_fault(self, group: Sequence[Response]) -> str | None: ...

    def candidate_fault(self, scored: Response) -> str | None: ...

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None: ...


class FilterPart(Part):
    """Settings of a filter, and its faults. A fault is a word for the counts, such as `small_gap`."""

    def prompt_fault(self, prompt: Prompt) -> str | None:
        """Why this prompt's image may not be used in pairs."""
        return None

    def group_fault(self, group: Sequence[Response]) -> str | None:
        """Why these candidates, all of one prompt, may not be used in pairs."""
        return None

    def candidate_fault(self, scored: Response) -> str | None:
        """Why the candidate may not be used in pairs."""
        return None

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        """Why the pair is dropped."""
        return None


FAULTS = ("prompt_fault", "group_fault", "candidate_fault", "pair_fault")
"""The methods of a filter; a filter defines at least one."""

NOISE = 1e-6
"""Tolerance for rounding in differences and products of decimals: a gap of 2.00 counts as 2."""


def under(value: float, least: float) -> bool:
    """Whether a value misses a bound by more than rounding noise."""
    return value < least - NOISE
