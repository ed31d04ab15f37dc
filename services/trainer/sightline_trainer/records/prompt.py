"""Prompt: one image with the user's text, and what is known about the image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PROMPT_REASONS = ("IMAGE_", "PROMPT_", "CANDIDATE_", "STATEMENT_")
"""How reasons of refusals begin that are about one prompt: another prompt may well be answered."""


@dataclass(frozen=True)
class Prompt:
    """One image and prompt. `objects` is empty where truth is not known, `reference` where nobody annotated."""

    id: str
    image: Path
    prompt: str
    reference: str = ""
    objects: tuple[str, ...] = ()

    def seed(self, *parts: int) -> int:
        """A 63-bit seed that depends on the prompt's id and on `parts` only."""
        text = "/".join([self.id, *map(str, parts)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
