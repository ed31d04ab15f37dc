"""Treebank: words of an English text as NLTK's `word_tokenize` has them, with their places, without NLTK or its data.

The official CHAIR script tokenises with NLTK, whose rules are those of Robert MacIntyre's sed script for the Penn
Treebank with additions (NLTK 3.10, `NLTKWordTokenizer`; Apache-2.0). They decide what is one word and so what is no
object: "dog+cat", "-dog", "Frisbee™" and a dog with a zero-width space are one unknown word each. The rules put spaces
round what stands alone, one after the other, each seeing what those before it did; so does this module.

Sentences end behind a full stop, ! or ? before white space or certain marks, as Punkt has it for words that are no
abbreviations; none of Punkt's English abbreviations is a word for an object.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

Token = tuple[str, int, int]
"""A word and its place: `text[start:end]`."""

_END = re.compile(r"""[.!?](?=[)";}\]*:@'({\[!?‘’“”«»]|\s+\S)""")
_CLOSING = re.compile(r"""["')\]}‘’“”«»]+?(?:\s+|(?=--)|$)""", re.MULTILINE)

# Opening quotation marks become one stand-in each: later rules treat them otherwise than closing ones. A stand-in is as
# long as what it stands for, so that places can be counted.
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
    """Places of the sentences. Of several ends without white space between them the last one counts; marks that close
    go with the sentence before them."""
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
