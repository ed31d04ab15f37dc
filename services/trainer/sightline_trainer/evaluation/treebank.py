"""Treebank: splits an English text into words like NLTK's `word_tokenize`, with positions, without NLTK or its data.

The official CHAIR script tokenises with NLTK, whose rules are those of Robert MacIntyre's sed script for the Penn
Treebank with additions (NLTK 3.10, `NLTKWordTokenizer`; Apache-2.0). They decide what one word is, and so what is not
an object: "dog+cat", "-dog", "Frisbee™" and a dog with a zero-width space are one unknown word each. The rules put
spaces around separate words, one rule after the other, each applied to the result of those before; so does this module.

Sentences end after a full stop, ! or ? that is followed by white space or certain marks, as in Punkt for words that are
not abbreviations; no object's name is one of Punkt's English abbreviations.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

Token = tuple[str, int, int]
"""A word and its position: `text[start:end]`."""

_END = re.compile(r"""[.!?](?=[)";}\]*:@'({\[!?‘’“”«»]|\s+\S)""")
_CLOSING = re.compile(r"""["')\]}‘’“”«»]+?(?:\s+|(?=--)|$)""", re.MULTILINE)

# Each opening quotation mark becomes a stand-in, since later rules treat it unlike a closing one. A stand-in has the
# same length as the mark, so that positions remain right.
_OPEN, _OPEN_TWO = "\ue000", "\ue001\ue001"
_FOREIGN = str.maketrans({"\ue000": "\ufffd", "\ue001": "\ufffd"})

_BEFORE_ENDS = [
    (re.compile(r"([«“‘„]|`+)"), r" \1 "),
    (re.compile(r'^"'), f" {_OPEN} "),
    (re.compile(r"(``)"), r" \1 "),
    (re.compile(r'([ (\[{<])"'), rf"\1 {_OPEN} "),
    (re.compile(r"([ (\[{<])''"), rf"\1 {_OPEN_TWO} "),
    (re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE), "' "),
    (re.compile(r"""([^.])(\.)([\])}>"'»”’ ]*)\s*$"""), r"\1 \2 \3 "),  # the full stop of a sentence
    (re.compile(r"([:,])([^\d])"), r" \1 \2"),
    (re.compile(r"([:,])$"), r" \1 "),
    (re.compile(r"(\.{2,})"), r" \1 "),
    (re.compile(r"([;@#$%&])"), r" \1 "),
    (re.compile("([\u2012-\u2015])"), r" \1 "),  # dashes that are not hyphens
    (re.compile(r"""([^.])(\.)([\])}>"']*)\s*$"""), r"\1 \2\3 "),
    (re.compile(r"([?!])"), r" \1 "),
    (re.compile(r"([^'])' "), r"\1 ' "),
    (re.compile(r"([*])"), r" \1 "),
    (re.compile(r"([\]\[(){}<>])"), r" \1 "),
    (re.compile(r"(--)"), r" \1 "),
]
_ENDS = [
    (re.compile(r"([»”’])"), r" \1 "),
    (re.compile(r"('')"), r" \1 "),
    (re.compile(r'(")'), r" \1 "),
    (re.compile(r"\s+"), " "),
    (re.compile(r"([^' ])('[sS]|'[mM]|'[dD]|') "), r"\1 \2 "),
    (re.compile(r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) "), r"\1 \2 "),
    (re.compile(r"\b(can)(not)\b", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r"\b(d)('ye)\b", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r"\b(gim|lem)(me)\b", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r"\b(gon)(na)\b", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r"\b(got)(ta)\b", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r"\b(more)('n)\b", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r"\b(wan)(na)(?=\s)", re.IGNORECASE), r" \1 \2 "),
    (re.compile(r" ('t)(is|was)\b", re.IGNORECASE), r" \1 \2 "),
]


def tokens(text: str) -> list[Token]:
    """The words of a text and its punctuation, in order."""
    return [token for start, end in _sentences(text) for token in _words(text[start:end], start)]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Positions of the sentences. The last of several ends without white space between them counts; closing marks
    belong to the sentence before them."""
    ends = [match.end() for match in _END.finditer(text)]
    start = 0
    for number, end in enumerate(ends, 1):
        between = text[end : ends[number]] if number < len(ends) else " "
        if not any(mark in string.whitespace for mark in between):
            continue
        closing = _CLOSING.match(text, len(text) - len(text[end:].lstrip()))
        stop = closing.end() if closing else end
        if stop > start:
            yield start, stop
            start = stop
    if start < len(text):
        yield start, len(text)


def _words(sentence: str, offset: int) -> Iterator[Token]:
    spaced = sentence.translate(_FOREIGN)
    for rule, put in _BEFORE_ENDS:
        spaced = rule.sub(put, spaced)
    spaced = f" {spaced} "
    for rule, put in _ENDS:
        spaced = rule.sub(put, spaced)
    at = 0
    for word in spaced.split():
        while sentence[at].isspace():
            at += 1
        yield sentence[at : at + len(word)], offset + at, offset + at + len(word)
        at += len(word)
