"""Writer: rewrites a good answer with errors."""

from __future__ import annotations

from typing import Protocol

from sightline_trainer.records.prompt import Prompt


class Writer(Protocol):
    """Rewrites `text`, an answer to `asked` about the prompt's image."""

    async def __call__(self, prompt: Prompt, asked: str, text: str, seed: int) -> str | None:
        """The text with errors, or None if none could be made; the same seed gives the same rewriting if the writer is
        deterministic."""
        ...
