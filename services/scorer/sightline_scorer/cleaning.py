"""How texts are cleaned before they are tokenised: open_clip's three ways, without open_clip (the tests compare)."""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable

import ftfy

Clean = Callable[[str], str]
_PLAIN = re.compile(r"[ -%'-~\n]*")  # printable ASCII and line ends, without &: ftfy and html.unescape change nothing
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_whitespace(text: str) -> str:
    """Repair the encoding, unescape HTML twice, and put one space between words."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def clean_lower(text: str) -> str:
    """The same, in lower case."""
    return clean_whitespace(text).lower()


def clean_canonicalize(text: str) -> str:
    """The same, in lower case and without punctuation (SigLIP's way)."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(text.replace("_", " ").translate(_PUNCTUATION).lower().split())


CLEANING: dict[str, Clean] = {
    "lower": clean_lower,
    "whitespace": clean_whitespace,
    "canonicalize": clean_canonicalize,
}
"""By open_clip's names."""
