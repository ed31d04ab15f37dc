"""Stop strings: a candidate ends at the token that completes one.

Strings are searched in the text without special tokens, as it is returned. Most tokens complete nothing, so only the
end of a candidate is decoded at each token, and the whole text only if that end contains a string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MARGIN = 8  # extra tokens, since a first token decoded alone may lose its space or be part of a character


def holds_stop(tokenizer: Any, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the text of `token_ids` contains one of the strings, given that it did not before the last id."""
    # A token has at least one byte, unless it is special: special tokens may hide the string's beginning.
    window = max(len(text.encode()) for text in stop) + _MARGIN
    if not _found(tokenizer, token_ids[-window:], stop):
        return False
    return len(token_ids) <= window or _found(tokenizer, token_ids, stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings."""
    places = [place for place in (text.find(one) for one in stop) if place >= 0]
    return text[: min(places)] if places else text


def _found(tokenizer: Any, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    return any(one in text for one in stop)
