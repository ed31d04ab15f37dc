"""Marks words of a text that are not in the picture, and words in which two texts differ, as safe HTML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape


def mark_spans(text: str, spans: Iterable[tuple[int, int]]) -> Markup:
    """The text with `<mark>` around each span (start, end in characters; overlapping ones are joined)."""
    parts, at = [], 0
    for start, end in _joined(spans):
        parts += [escape(text[at:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def differences(chosen: str, rejected: str) -> tuple[Markup, Markup]:
    """Both texts, with `<ins>` around words that only the chosen one has and `<del>` around those of the rejected."""
    a, b = _words(rejected), _words(chosen)
    left, right = [], []
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        left.append(_wrapped("del", a[a0:a1], kind != "equal"))
        right.append(_wrapped("ins", b[b0:b1], kind != "equal"))
    return Markup(" ").join(part for part in right if part), Markup(" ").join(part for part in left if part)


def _words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


def _wrapped(tag: str, words: Sequence[str], changed: bool) -> Markup:
    text = escape(" ".join(words))
    return Markup(f"<{tag}>{text}</{tag}>") if changed and words else text  # noqa: S704 - escaped in the line above
