"""Parse judges' answers: a mark, a yes or no, or verdicts. None is not a mark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

ALTERNATIVES: Final = 5
"""Number of first-token alternatives to request with log-probs; all endpoints allow at least five."""
_WORD: Final = re.compile(r"[^\W\d_]+")
_NUMBER: Final = re.compile(r"(?<![\w.,\u066b])([-+\u2212\u2013]?)(\d+(?:[.,\u066b]\d+)*)")
_LABEL: Final = re.compile(r"(?:rating|score|mark)\s*(?:is|of|[:=])?\s*\**\s*$", re.I)
_LESS: Final = re.compile(r"(?:minus|negative)\s*$", re.I)
_OUT_OF: Final = re.compile(r"\s*(?:/|out of)\s*(\d+(?:\.\d+)?)", re.I)
_IN_A_WORD: Final = re.compile(r"[\w%]|[-\u2013][^\W\d]")
_RANGE: Final = re.compile(r"\s*[-\u2212\u2013]\s*\d")
_VERDICT: Final = re.compile(r"^\W*(\d+)\s*[.:)\-]?\s*\W*(yes|no)\b", re.I | re.M)


def yes_or_no(text: str) -> bool | None:
    """Whether the first word is yes (True) or no (False); None if it is neither."""
    word = _WORD.search(text)
    said = word[0].lower() if word else ""
    return True if said == "yes" else False if said == "no" else None


def rating(text: str, low: float = 1.0, high: float = 5.0) -> float | None:
    """The one mark in a text: after "rating", "score" or "mark", otherwise a number out of another, otherwise any
    number.

    Guessing is not allowed. No mark are two different ones, one out of bounds or negative, one out of another number
    than `high`, a range, and a number with a comma (4,5 may be 4.5).
    """
    labelled, shares, plain = [], [], []
    for found in _NUMBER.finditer(text):
        before, after = text[: found.start()], text[found.end() :]
        if _IN_A_WORD.match(after):
            continue
        share = _OUT_OF.match(after)
        mark = math.nan
        if not (_RANGE.match(after) or _LESS.search(before) or (share and float(share[1]) != high)):
            mark = _value(found[1], found[2])
        if _LABEL.search(before):
            labelled.append(mark)
        elif share:
            shares.append(mark)
        else:
            plain.append(mark)
    marks = labelled or shares or plain
    return marks[0] if marks and all(mark == marks[0] for mark in marks) and low <= marks[0] <= high else None


def _value(sign: str, digits: str) -> float:
    """The number, or NaN."""
    try:
        return float(digits) * (-1.0 if sign not in ("", "+") else 1.0)
    except ValueError:
        return math.nan


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
