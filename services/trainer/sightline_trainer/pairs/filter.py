"""Filter: says of a prompt, a candidate or a pair why it is dropped, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class Filter(Protocol):
    """What a filter finds fault with; see `FilterPart`."""

    def prompt_fault(self, prompt: Prompt) -> str | None: ...

    def group_fault(self, group: Sequence[Response]) -> str | None: ...

    def candidate_fault(self, scored: Response) -> str | None: ...

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None: ...


class FilterPart(Part):
    """Settings of a filter, and what it finds fault with. A fault is a word for the counts, such as `small_gap`."""

    def prompt_fault(self, prompt: Prompt) -> str | None:
        """Why no pair may be built on this prompt's image."""
        return None

    def group_fault(self, group: Sequence[Response]) -> str | None:
        """Why no pair may be built of these candidates, all that one prompt has."""
        return None

    def candidate_fault(self, scored: Response) -> str | None:
        """Why the candidate may stand in no pair."""
        return None

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        """Why the pair is not learned from."""
        return None


NOISE = 1e-6
"""Differences and products of decimals carry this much of nothing: a gap of 2.00 is one of 2."""


def under(value: float, least: float) -> bool:
    """Whether a value misses a bound by more than arithmetic's noise."""
    return value < least - NOISE
