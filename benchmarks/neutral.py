"""Neutral: a judge that draws lots, with which a recipe's own judge is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def lots(images: Sequence[object], prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """A number from 0 to 1 for each text, by chance, but the same for the same prompt and texts.

    All candidates of a picture go into the draw, so that a text that is often written is not a favourite everywhere.
    """
    drawn = hashlib.sha256("\0".join([*prompts, *texts]).encode()).digest()
    return [int.from_bytes(hashlib.sha256(drawn + text.encode()).digest()[:4], "big") / 0xFFFFFFFF for text in texts]
