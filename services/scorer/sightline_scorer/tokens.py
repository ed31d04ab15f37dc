"""Turns texts into token ids with true counts: open_clip's ids without its silent cut.

A text that spells a special token such as `<end_of_text>` is refused, since the model would ignore everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sightline.errors import InternalError, InvalidInput

from sightline_scorer.cleaning import clean_canonicalize
from sightline_scorer.vocabularies import FileVocabulary
from sightline_scorer.words import WordTokenizer


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The tokens of one text."""

    ids: list[int]
    """The model's input: padded to its window, or not padded if padding cannot matter. Valid only if the text fits."""
    length: int
    """Number of tokens, start and end included; larger than the window if the text does not fit."""


class TextReader(Protocol):
    """Measures the length of texts: a `Tokenizer`, or `WholeTexts`."""

    window: int

    def encode(self, texts: Sequence[str], indices: Sequence[int]) -> list[TokenRow]:
        """The tokens of texts; errors name `indices`, the positions in the request. Raises InvalidInput."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text; nothing is refused."""
        ...


class WholeTexts:
    """For a model whose window another service checks: every text fits, and its token count is unknown (0)."""

    window = 2**31 - 1

    def encode(self, texts: Sequence[str], indices: Sequence[int]) -> list[TokenRow]:
        """No tokens."""
        return [TokenRow([], 0) for _ in texts]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Not known."""
        return [0 for _ in texts]


class Tokenizer:
    """The tokenizer of one model. Safe to use from several threads.

    Args:
        tokenizer: from `vocabularies.vocabulary` or `open_clip.get_tokenizer`.
        context_length: L, the model's window in tokens.
        vocabulary_size: number of tokens that the model knows; 0 if unknown.
        trim: whether the model ignores everything after the end token, so that rows need no padding.
    """

    def __init__(self, tokenizer: Any, context_length: int, vocabulary_size: int = 0, *, trim: bool = False) -> None:
        self._tokenizer = tokenizer
        self.window = context_length
        self._vocabulary_size = vocabulary_size
        self._is_simple = hasattr(tokenizer, "byte_encoder") and hasattr(tokenizer, "eot_token_id")
        self._trim = trim and self._is_simple
        if self._is_simple:
            self._words = WordTokenizer(tokenizer)
        self._special: frozenset[int | None] = frozenset()
        if not self._is_simple:
            inner = tokenizer.tokenizer
            end = getattr(inner, "sep_token_id", None)  # BERT's; in other tokenizers it may be a word
            (plain,) = _plain_ids(tokenizer, ["a"])
            named = {inner.eos_token_id, inner.bos_token_id, inner.pad_token_id, inner.cls_token_id}
            self._special = frozenset(named | {end} & set(plain))
        self.encode(["a"], [0])  # a fast tokenizer sets its padding at its first call: not in two threads

    def encode(self, texts: Sequence[str], indices: Sequence[int]) -> list[TokenRow]:
        """The tokens of texts; errors name `indices`, the positions in the request. Raises InvalidInput."""
        if not texts:
            return []
        rows = self._encode_simple(texts) if self._is_simple else self._encode_hf(texts)
        separator = (
            self._tokenizer.tokenizer.sep_token_id if getattr(self._tokenizer, "strip_sep_token", False) else None
        )
        for row, index in zip(rows, indices, strict=True):
            self._check(row.ids[: row.length] if self._is_simple else row.ids, index)
            if row.length > self.window:
                continue
            if separator is not None:
                row.ids[:] = [0 if token == separator else token for token in row.ids]
            if self._vocabulary_size and max(row.ids) >= self._vocabulary_size:
                raise InternalError(
                    f"the tokenizer made token {max(row.ids)}, but the model knows {self._vocabulary_size}: the "
                    "model's folder holds a tokenizer of another model",
                    reason="TOKENIZER_MISMATCH",
                )
        return rows

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, start and end included; nothing is refused."""
        if self._is_simple:
            return [len(self._words.encode(text)) + 2 for text in texts]
        return [row.length for row in self._encode_hf(texts)]

    def _encode_simple(self, texts: Sequence[str]) -> list[TokenRow]:
        tokenizer = self._tokenizer
        rows = []
        for text in texts:
            ids = [tokenizer.sot_token_id, *self._words.encode(text), tokenizer.eot_token_id]
            length = len(ids)
            if not self._trim:
                ids += [0] * (self.window - length)
            rows.append(TokenRow(ids, length))
        return rows

    def _encode_hf(self, texts: Sequence[str]) -> list[TokenRow]:
        wrapper = self._tokenizer
        if getattr(wrapper, "tokenizer_mode", ""):
            return self._encode_clips(texts)
        if isinstance(wrapper, FileVocabulary):
            made = wrapper.rows([self._clean(text) for text in texts])
            return [TokenRow(wrapper.padded(ids), len(ids)) for ids in made]
        encoded = wrapper.tokenizer(
            [self._clean(text) for text in texts],
            max_length=self.window,
            padding="max_length",
            truncation=False,
            return_attention_mask=True,
            verbose=False,
        )
        return [
            TokenRow(list(ids)[: self.window] if sum(mask) <= self.window else list(ids), sum(mask))
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]

    def _encode_clips(self, texts: Sequence[str]) -> list[TokenRow]:
        """CLIPS adds its start, end and class tokens itself; for rows longer than the window, only the length is
        used."""
        wrapper = self._tokenizer
        clean_texts = [self._clean(text) for text in texts]
        plain = wrapper.tokenizer(clean_texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [TokenRow(ids, len(row) + 3) for ids, row in zip(wrapper(list(texts)).tolist(), plain, strict=True)]

    def _clean(self, text: str) -> str:
        clean = getattr(self._tokenizer, "clean_fn", clean_canonicalize)  # open_clip's SigLipTokenizer has none
        return str(clean(text))

    def _check(self, row: list[int], index: int) -> None:
        if self._is_simple:
            if len(row) <= 2:
                raise refused(index, "holds nothing that the model can read", "TEXT_EMPTY")
            end = self._tokenizer.eot_token_id
            if end in row[:-1] or self._tokenizer.sot_token_id in row[1:]:
                raise refused(index, "spells a special token, which would end it there: take it out", "TEXT_SPECIAL")
            return
        inner = [token for token in row if token not in self._special]
        if not inner:
            raise refused(index, "holds nothing that the model can read", "TEXT_EMPTY")
        first, last = row.index(inner[0]), len(row) - 1 - row[::-1].index(inner[-1])
        if len(inner) <= last - first:  # a special one is between them
            raise refused(index, "spells a special token, which would end it there: take it out", "TEXT_SPECIAL")


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if isinstance(tokenizer, FileVocabulary):
        return tokenizer.rows(texts)
    ids: list[list[int]] = tokenizer.tokenizer(texts)["input_ids"]
    return ids


def refused(index: int, what: str, reason: str, tokens: int | None = None) -> InvalidInput:
    """The error of one text of a request."""
    metadata = {"text_index": str(index)}
    if tokens is not None:
        metadata["token_count"] = str(tokens)
    return InvalidInput(f"texts[{index}] {what}", reason=reason, metadata=metadata)
