"""Neutral: a random judge, as the baseline of a recipe's own judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def lots(images: Sequence[object], prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """A pseudo-random number from 0 to 1 for each text, the same for the same prompt and texts.

    All candidates of an image enter the seed, so that a frequent text is not preferred everywhere.
    """
    drawn = hashlib.sha256("\0".join([*prompts, *texts]).encode()).digest()
    return [int.from_bytes(hashlib.sha256(drawn + text.encode()).digest()[:4], "big") / 0xFFFFFFFF for text in texts]
