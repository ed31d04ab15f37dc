"""Properties of texts without the image: whether they are degenerate, and how much samples differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

_REPEATED = re.compile(r"\b(\w+(?:\W+\w+){0,7})(?:\W+\1){2,}\b")


def degenerate(text: str, finish_reason: str) -> str:
    """Why a text is degenerate, or "".

    "empty": no word. "unfinished": cut off at the maximum length. "repeats": one to eight words repeat three times or
    more in a row, the loop that preference training and greedy decoding fall into (Holtzman et al. 2020, arXiv
    1904.09751, "neural text degeneration").
    """
    if not re.search(r"\w", text):
        return "empty"
    if finish_reason == "length":
        return "unfinished"
    return "repeats" if _REPEATED.search(text.lower()) else ""


def distinct(texts: Sequence[str]) -> tuple[int, int]:
    """(different texts, texts) of one image's samples, regardless of white space and case. A policy whose samples are
    all equal gives no pairs to learn from."""
    return len({" ".join(text.lower().split()) for text in texts}), len(texts)
