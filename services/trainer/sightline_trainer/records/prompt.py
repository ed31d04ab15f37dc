"""Prompt: images with the user's text, possibly at the end of a conversation, and known facts about the images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sightline.sampler import Turn
from sightline.sampler.turns import user_turn

_CONVERSATION = ("IMAGES_", "TOO_MANY_IMAGES", "TOO_MANY_TURNS", "BAD_TURNS")
PROMPT_REASONS = ("IMAGE_", "PROMPT_", "CANDIDATE_", "STATEMENT_", *_CONVERSATION)
"""Prefixes of refusal reasons that concern a single prompt: other prompts may be answered."""


@dataclass(frozen=True)
class Prompt:
    """Images and prompt. `objects` is empty if the truth is unknown, `reference` if there is no annotation."""

    id: str
    images: tuple[Path, ...]
    """At least one, in the order of their places."""
    prompt: str
    """The user's text to answer."""
    reference: str = ""
    objects: tuple[str, ...] = ()
    """Objects in all images together."""
    turns: tuple[Turn, ...] = ()
    """The whole conversation, if it is more than the images followed by the text; it ends with the text."""

    def asked(self, text: str | None = None) -> tuple[Turn, ...]:
        """The conversation with `text` as the user's last text; None is the prompt's own.

        Another text comes after the images of its turn, wherever they were before.
        """
        text = self.prompt if text is None else text
        if not self.turns:
            return user_turn(text, len(self.images))
        if text == self.prompt:
            return self.turns
        return (*self.turns[:-1], *user_turn(text, self.turns[-1].images))

    def seed(self, *parts: int) -> int:
        """A 63-bit seed that depends only on the prompt's id and on `parts`."""
        text = "/".join([self.id, *map(str, parts)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
