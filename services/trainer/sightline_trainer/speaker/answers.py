"""Parse judges' answers: a mark, a yes or no, or verdicts. None is not a mark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

ALTERNATIVES: Final = 5
"""Number of first-token alternatives to request with log-probs; all endpoints allow at least five."""
_WORD: Final = re.compile(r"[^\W\d_]+")
_RATING: Final = re.compile(r"(?:rating|score|mark)\s*(?:is|of|[:=])?\s*\**\s*(\d+(?:\.\d+)?)", re.I)
_NUMBER: Final = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?![\w]|\.\d)")
_OUT_OF: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/|out of)\s*\d+", re.I)
_VERDICT: Final = re.compile(r"^\W*(\d+)\s*[.:)\-]?\s*\W*(yes|no)\b", re.I | re.M)


def yes_or_no(text: str) -> bool | None:
    """Whether the first word is yes (True) or no (False); None if it is neither."""
    word = _WORD.search(text)
    said = word[0].lower() if word else ""
    return True if said == "yes" else False if said == "no" else None


def rating(text: str, low: float = 1.0, high: float = 5.0) -> float | None:
    """The one mark in a text: after "rating", "score" or "mark", otherwise a number out of another, otherwise any
    number.

    Two different marks count as none, and so does one out of bounds: guessing is not allowed.
    """
    for pattern in (_RATING, _OUT_OF, _NUMBER):
        found = {float(match) for match in pattern.findall(text)}
        if found:
            (mark, *others) = found
            return mark if not others and low <= mark <= high else None
    return None


def verdicts(text: str, count: int) -> list[bool] | None:
    """A yes or no for each of `count` numbered sentences ("1: yes"), in order; None unless each has exactly one."""
    found: dict[int, bool] = {}
    for number, said in _VERDICT.findall(text):
        if int(number) in found:
            return None
        found[int(number)] = said.lower() == "yes"
    return [found[number] for number in range(1, count + 1)] if set(found) == set(range(1, count + 1)) else None


def share_of_yes(alternatives: Iterable[tuple[str, float]]) -> float | None:
    """P(yes) / (P(yes) + P(no)) of tokens that may begin an answer, each with its log-prob; None without either.

    "Yes", " yes" and "YES" are one word in several tokens, and count together.
    """
    mass = {True: 0.0, False: 0.0}
    for token, logprob in alternatives:
        said = yes_or_no(token)
        if said is not None:
            mass[said] += math.exp(logprob)
    total = mass[True] + mass[False]
    return mass[True] / total if math.isfinite(total) and total > 0 else None
