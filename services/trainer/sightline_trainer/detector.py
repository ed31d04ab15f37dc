"""Detector: says which objects are in a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sightline_trainer.records.prompt import Prompt


class Detector(Protocol):
    """Scores objects in a picture."""

    identity: str

    async def __call__(self, prompt: Prompt, objects: Sequence[str]) -> Mapping[str, float]:
        """A score for each object that the detector could look for.

        Raises:
            InvalidInput: this picture is refused.
            SightlineError: no service answers.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
