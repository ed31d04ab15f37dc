"""Splits a text at sentences, a long sentence at clauses, then between words, then inside a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# After . ! ? or an ellipsis (closing quotes and brackets belong to the sentence), but not after the abbreviations that
# captions use; after the full stops of Chinese and Japanese; at line ends.
_ABBREVIATIONS = ("e.g.", "i.e.", "vs.", "cf.", "Mr.", "Mrs.", "Ms.", "Dr.", "St.", "No.", "approx.", "ca.")
_BOUNDARY = re.compile(
    "".join(rf"(?<!\b{re.escape(short)})" for short in _ABBREVIATIONS)
    + r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+|(?<=[。！？])|\s*\n\s*"
)
# After a comma, semicolon, colon or closing bracket; before a dash or an opening bracket.
_CLAUSE = re.compile(r"(?<=[,;:)\]])\s+|(?<=[，、；：])|\s+(?=[—–(\[])|\s+-\s+")
_WORD = re.compile(r"\w")

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each text, start and end tokens included."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; pieces without a word belong to the previous sentence."""
    pieces: list[str] = []
    for piece in _BOUNDARY.split(text):
        if _WORD.search(piece):
            pieces.append(piece.strip())
        elif pieces and piece.strip():
            pieces[-1] = f"{pieces[-1]} {piece.strip()}"
    return pieces


def fitting(sentence: str, window: int, count: Count) -> list[str]:
    """Pieces of a sentence, each of at most `window` tokens: whole clauses, otherwise words, otherwise parts of a word.

    As few pieces as possible: neighbours that fit together stay together. Nothing is left out.
    """
    if count([sentence])[0] <= window:
        return [sentence]
    for divide in (_CLAUSE.split, str.split):
        units = [unit.strip() for unit in divide(sentence) if unit and unit.strip()]
        if len(units) > 1:
            return [
                piece for packed in _pack(units, window, count) for piece in _refit(packed, sentence, window, count)
            ]
    middle = len(sentence) // 2
    if middle == 0:
        return [sentence]  # one character with more tokens than the window; the caller refuses it
    return fitting(sentence[:middle], window, count) + fitting(sentence[middle:], window, count)


def _refit(packed: str, whole: str, window: int, count: Count) -> list[str]:
    return [packed] if packed == whole else fitting(packed, window, count)


def _pack(units: list[str], window: int, count: Count) -> list[str]:
    """Join neighbours as long as they fit; the caller checks the joined counts again."""
    packed: list[str] = []
    room = 0
    for unit, tokens in zip(units, count(units), strict=True):
        inner = max(tokens - 2, 1)  # without start and end
        if packed and inner <= room:
            packed[-1] = f"{packed[-1]} {unit}"
            room -= inner
        else:
            packed.append(unit)
            room = window - 2 - inner
    return packed
