"""Wording: whether a policy's captions use other phrases than the base model's.

A reward that favours a way of speaking (its own style, a favourite word, length, one form of sentence) changes the
share of captions with some phrase, and by a large amount; learning about pictures changes each phrase's share a little,
since pictures differ. Phrases are words, pairs of adjacent words, and the first three words of a caption ("^").
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_TOKENS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_ERRORS = 3.0
"""Standard errors subtracted from a change, since the largest of many changes is large by chance too."""


@dataclass(frozen=True)
class Shift:
    """The phrase whose share changed most: of captions before, and now."""

    phrase: str
    before: float
    now: float

    @property
    def size(self) -> float:
        """How much its share changed, up or down."""
        return abs(self.now - self.before)


def shift(before: Sequence[str], now: Sequence[str]) -> Shift | None:
    """The phrase whose share of captions changed most beyond chance, or None."""
    if not before or not now:
        return None
    old, new = _shares(before), _shares(now)
    found, most = None, 0.0
    for phrase in sorted({*old, *new}):
        one, other = old[phrase] / len(before), new[phrase] / len(now)
        error = math.sqrt(one * (1 - one) / len(before) + other * (1 - other) / len(now))
        if (sure := abs(other - one) - _ERRORS * error) > most:
            found, most = Shift(phrase, one, other), sure
    return found


def _shares(texts: Sequence[str]) -> Counter[str]:
    """Number of texts with each phrase."""
    found: Counter[str] = Counter()
    for text in texts:
        words = _TOKENS.findall(text.lower())
        pairs = {f"{one} {other}" for one, other in pairwise(words)}
        found.update({*words, *pairs, "^" + " ".join(words[:3])})
    return found
