"""Filter: says of a prompt, a candidate or a pair why it is dropped, or None."""

from __future__ import annotations

from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class FilterPart(Part):
    """Settings of a filter, and what it finds fault with. A fault is a word for the counts, such as `small_gap`."""

    def prompt_fault(self, prompt: Prompt) -> str | None:
        """Why no pair may be built on this prompt's image."""
        return None

    def candidate_fault(self, scored: Response) -> str | None:
        """Why the candidate may stand in no pair."""
        return None

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        """Why the pair is not learned from."""
        return None
