"""Which parts of each text are scored (the whole, its sentences, or the whole and phrases), and how long texts are
treated.

Nothing is ever cut. A text longer than the model's window is split into sentences (as in CSR, Zhou et al. 2024), and a
longer sentence into pieces at clauses, words or tokens, which is flagged. With LONG_TEXT_REJECT it is refused, with its
index and token count.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sightline.errors import InvalidInput
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.sentences import fitting, sentences
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.tokens import TextReader, TokenRow, refused

INLINE_COST = 1024
"""Tokenising above this cost runs in a thread, since all callers would wait for it. See `cost`."""

_TEXT_COST, _OTHER_COST = 16, 5

Unknown = Callable[[Sequence[bytes]], list[int]]
"""Positions of the keys without known embeddings, whose texts must be tokenised."""


Steps = Generator[None, None, "Plan"]
"""Makes a plan step by step; it can pause between two texts. Raises InvalidInput that names the text at fault."""


@dataclass
class Plan:
    """The rows to embed, and how they form the texts' scores (see scores.py: rows, groups, texts)."""

    rows: list[str] = field(default_factory=list)
    """[N] the texts to embed, each within the window."""
    keys: list[bytes] = field(default_factory=list)
    """[N] their SHA-256."""
    tokens: dict[int, TokenRow] = field(default_factory=dict)
    """Tokens of the rows, by position; known rows are missing."""
    groups: list[str] = field(default_factory=list)
    """[G] the scored parts."""
    group_sizes: list[int] = field(default_factory=list)
    """[G] number of rows of each part."""
    text_sizes: list[int] = field(default_factory=list)
    """[K] number of groups of each text."""
    split: list[bool] = field(default_factory=list)
    """[G] whether a part is a piece of a sentence longer than the window, or was split into pieces."""
    token_counts: list[int] = field(default_factory=list)
    """[K] tokens of each whole text; 0 if they are those of its first row."""

    @property
    def plain(self) -> bool:
        """Whether each text is one row."""
        return len(self.rows) == len(self.text_sizes)

    def counts(self, notes: npt.NDArray[np.int32]) -> list[int]:
        """Tokens of each whole text [K], given those of the rows [N]."""
        if self.plain:
            return [count or note for count, note in zip(self.token_counts, notes.tolist(), strict=True)]
        first_group = np.concatenate(([0], np.cumsum(self.text_sizes)[:-1]))
        first_row = np.concatenate(([0], np.cumsum(self.group_sizes)[:-1]))[first_group]
        return [count or int(notes[row]) for count, row in zip(self.token_counts, first_row, strict=True)]


def cost(texts: Iterable[str]) -> int:
    """The worst cost of tokenising, in ASCII letters (up to 25 us each, measured with words of 64 random letters).
    Other characters, such as emoji and accents, cost five each, since cleaning and merges process them one by one."""
    return sum(_TEXT_COST + (len(text) if text.isascii() else _OTHER_COST * len(text)) for text in texts)


def advance(steps: Steps, seconds: float) -> Plan | None:
    """The plan, or None if it was not made within these seconds: call again to continue."""
    until = time.monotonic() + seconds
    while True:
        try:
            next(steps)
        except StopIteration as done:
            plan: Plan = done.value
            return plan
        if time.monotonic() >= until:
            return None


def finished(steps: Steps) -> Plan:
    """The plan, made at once."""
    plan = advance(steps, math.inf)
    assert plan is not None
    return plan


def key_of(text: str) -> bytes:
    """SHA-256 of a text's bytes."""
    return hashlib.sha256(text.encode()).digest()


def check_texts(texts: Sequence[str], limits: ScorerLimits, name: str = "texts") -> None:
    """Raise InvalidInput for no texts, too many, an empty one, or one over the byte limit."""
    if not texts:
        raise InvalidInput("the request has no texts: give at least one", reason="NO_TEXTS")
    if len(texts) > limits.max_texts:
        raise InvalidInput(
            f"the request has {len(texts)} texts, over the limit of {limits.max_texts}: send them in several requests",
            reason="TOO_MANY_TEXTS",
            metadata={"texts": str(len(texts)), "limit": str(limits.max_texts)},
        )
    for index, text in enumerate(texts):
        check_text(index, text, limits)


def check_text(index: int, text: str, limits: ScorerLimits) -> None:
    """Raise InvalidInput, which names the index, for a text that is empty or over the byte limit."""
    if not text or text.isspace():
        raise refused(index, "is empty: leave it out, or write what the image should show", "TEXT_EMPTY")
    size = len(text) if len(text) * 4 <= limits.max_text_bytes else len(text.encode())
    if size > limits.max_text_bytes:
        raise refused(
            index,
            f"holds {size} bytes, over the limit of {limits.max_text_bytes}: shorten it or split it",
            "TEXT_TOO_LARGE",
        )


def check_request(request: pb.ScoreRequest, limits: ScorerLimits) -> None:
    """Raise InvalidInput for everything that can be checked without a model."""
    check_texts(request.texts, limits)
    for value, enum, name in (
        (request.long_text, pb.LongText, "long_text"),
        (request.unit, pb.TextUnit, "unit"),
        (request.aggregation, pb.Aggregation, "aggregation"),
    ):
        if value not in enum.values():
            raise InvalidInput(f"{name} {value} is not one of {enum.DESCRIPTOR.name}", reason=f"{name.upper()}_UNKNOWN")
    if request.unit == pb.TEXT_UNIT_PHRASES:
        if len(request.phrases) != len(request.texts):
            raise InvalidInput(
                f"{len(request.phrases)} lists of phrases for {len(request.texts)} texts: give one for each text, "
                "empty if a text has none",
                reason="PHRASES_MISMATCH",
            )
        for index, phrases in enumerate(request.phrases):
            for phrase in phrases.phrases:
                check_text(index, phrase, limits)
    elif request.phrases:
        raise InvalidInput("phrases are given, but unit is not TEXT_UNIT_PHRASES: set it", reason="PHRASES_UNASKED")


def plan_request(request: pb.ScoreRequest, tokenizer: TextReader, limits: ScorerLimits, unknown: Unknown) -> Steps:
    """The rows of a checked request."""
    reject = request.long_text == pb.LONG_TEXT_REJECT
    texts = list(request.texts)
    if request.unit == pb.TEXT_UNIT_SENTENCES:
        parts = [sentences(text) or [text] for text in texts]
        plan = yield from _plan(parts, tokenizer, limits, unknown, reject=reject, apart=True)
        plan.token_counts = []
        for text in texts:
            plan.token_counts += tokenizer.count([text])
            yield
        return plan
    if request.unit == pb.TEXT_UNIT_PHRASES:
        parts = [[text, *phrases.phrases] for text, phrases in zip(texts, request.phrases, strict=True)]
        return (yield from _plan(parts, tokenizer, limits, unknown, reject=reject, apart=False))
    return (yield from plan_texts(texts, tokenizer, limits, unknown, reject=reject))


def plan_texts(
    texts: list[str], tokenizer: TextReader, limits: ScorerLimits, unknown: Unknown, *, reject: bool, first: int = 0
) -> Steps:
    """The rows of whole texts; errors count them from `first`."""
    return _plan([[text] for text in texts], tokenizer, limits, unknown, reject=reject, apart=True, first=first)


def _plan(
    parts: list[list[str]],
    tokenizer: TextReader,
    limits: ScorerLimits,
    unknown: Unknown,
    *,
    reject: bool,
    apart: bool,
    first: int = 0,
) -> Steps:
    """Rows for the parts of each text; if `apart`, the pieces of a part longer than the window are separate parts."""
    flat = [part for text in parts for part in text]
    owner = [index for index, text in enumerate(parts, first) for _ in text]
    if len(flat) > limits.max_texts:
        raise _too_many(owner[limits.max_texts], limits)
    keys = [key_of(part) for part in flat]
    missing = unknown(keys)
    encoded: list[TokenRow] = []
    for some in _portions(missing, flat):
        encoded += tokenizer.encode([flat[position] for position in some], [owner[position] for position in some])
        yield
    tokens = dict(zip(missing, encoded, strict=True))
    sizes = [len(text) for text in parts]
    if all(row.length <= tokenizer.window for row in encoded):
        ones = [1] * len(flat)
        return Plan(flat, keys, tokens, flat, ones, sizes, [False] * len(flat), [0] * len(parts))
    plan = Plan(text_sizes=[0] * len(parts), token_counts=[0] * len(parts))
    for position, part in enumerate(flat):
        index, row = owner[position], tokens.get(position)
        text = index - first
        if row is None or row.length <= tokenizer.window:
            _add_group(plan, text, part, [(part, keys[position], row)], split=False)
            continue
        if reject:
            raise _too_long(index, row.length, tokenizer.window, "shorten it, or ask for LONG_TEXT_SENTENCES")
        if plan.text_sizes[text] == 0:  # the whole text; if sentences are requested, it is counted separately
            plan.token_counts[text] = row.length
        pieces = [
            (piece, len(found) > 1)
            for sentence in sentences(part) or [part]
            for found in [fitting(sentence, tokenizer.window, tokenizer.count)]
            for piece in found
        ]
        if len(plan.rows) + len(pieces) > limits.max_texts:
            raise _too_many(index, limits)
        rows = tokenizer.encode([piece for piece, _ in pieces], [index] * len(pieces))
        for (piece, _), found_row in zip(pieces, rows, strict=True):
            if found_row.length > tokenizer.window:
                raise _too_long(index, row.length, tokenizer.window, f"it cannot be split at {piece[:40]!r}")
        entries = [(piece, key_of(piece), found_row) for (piece, _), found_row in zip(pieces, rows, strict=True)]
        if apart:
            for entry, (piece, split) in zip(entries, pieces, strict=True):
                _add_group(plan, text, piece, [entry], split=split)
        else:
            _add_group(plan, text, part, entries, split=any(split for _, split in pieces))
        yield
    if len(plan.rows) > limits.max_texts:
        raise _too_many(len(parts) - 1, limits)
    return plan


def _portions(positions: Sequence[int], texts: Sequence[str]) -> Iterable[list[int]]:
    """Positions in order, in groups that are quickly tokenised."""
    portion: list[int] = []
    size = 0
    for position in positions:
        more = cost([texts[position]])
        if portion and size + more > INLINE_COST:
            yield portion
            portion, size = [], 0
        portion.append(position)
        size += more
    if portion:
        yield portion


def _add_group(
    plan: Plan, index: int, part: str, entries: Sequence[tuple[str, bytes, TokenRow | None]], *, split: bool
) -> None:
    for text, key, row in entries:
        if row is not None:
            plan.tokens[len(plan.rows)] = row
        plan.rows.append(text)
        plan.keys.append(key)
    plan.groups.append(part)
    plan.group_sizes.append(len(entries))
    plan.split.append(split)
    plan.text_sizes[index] += 1


def _too_many(index: int, limits: ScorerLimits) -> InvalidInput:
    return refused(index, f"makes over {limits.max_texts} parts with the others: send fewer texts", "TOO_MANY_TEXTS")


def _too_long(index: int, tokens: int, window: int, fix: str) -> InvalidInput:
    return refused(index, f"has {tokens} tokens, over the model's window of {window}: {fix}", "TEXT_TOO_LONG", tokens)
