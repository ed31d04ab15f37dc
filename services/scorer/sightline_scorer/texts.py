"""From texts to token ids, counted honestly: a text over the model's window is split or refused, never cut.

With LONG_TEXT_SENTENCES a long text becomes its sentences, each a row of its own, and its score is the mean of theirs
(the way of CSR, Zhou et al. 2024). Shorter texts are always one row. A sentence that is itself over the window, or any
long text under LONG_TEXT_REJECT, is refused with its index and token count.

The rows are those of open_clip's own tokenizer. A text that spells a special token such as `<end_of_text>` is refused,
since the model would read nothing behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sightline_chassis.errors import InternalError, InvalidInput

from sightline_scorer.settings import LimitSettings
from sightline_scorer.v1 import scorer_pb2 as pb
from sightline_scorer.words import WordTokenizer, clean

# After . ! ? or an ellipsis (closing quotes and brackets belong to the sentence), but not after the abbreviations that
# captions use; after the full stops of Chinese and Japanese; at line ends.
_ABBREVIATIONS = ("e.g.", "i.e.", "vs.", "cf.", "Mr.", "Mrs.", "Ms.", "Dr.", "St.", "No.", "approx.", "ca.")
_BOUNDARY = re.compile(
    "".join(rf"(?<!\b{re.escape(short)})" for short in _ABBREVIATIONS)
    + r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+|(?<=[。！？])|\s*\n\s*"
)
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class TokenRows:
    """The token rows of one request's texts."""

    ids: npt.NDArray[np.int32]
    """[N, L], padded to the model's window L; N = sum of parts."""
    lengths: npt.NDArray[np.int32]
    """[N] tokens of each row, start and end included."""
    parts: npt.NDArray[np.int32]
    """[K] rows of each text; its rows follow one another."""
    token_counts: npt.NDArray[np.int32]
    """[K] tokens of each whole text, start and end included."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; pieces without a word go with the sentence before them."""
    pieces: list[str] = []
    for piece in _BOUNDARY.split(text):
        if _WORD.search(piece):
            pieces.append(piece.strip())
        elif pieces and piece.strip():
            pieces[-1] = f"{pieces[-1]} {piece.strip()}"
    return pieces


def check_texts(texts: Sequence[str], limits: LimitSettings) -> None:
    """Refuse no texts, too many, an empty one and one over the byte limit. Raises InvalidInput."""
    if not texts:
        raise InvalidInput("the request has no texts: give at least one", reason="NO_TEXTS")
    if len(texts) > limits.max_texts:
        raise InvalidInput(
            f"the request has {len(texts)} texts, over the limit of {limits.max_texts}: send them in several requests",
            reason="TOO_MANY_TEXTS",
            metadata={"texts": str(len(texts)), "limit": str(limits.max_texts)},
        )
    for index, text in enumerate(texts):
        if not text or text.isspace():
            raise _refused(index, "is empty: leave it out, or write what the image should show", "TEXT_EMPTY")
        size = len(text) if len(text) * 4 <= limits.max_text_bytes else len(text.encode())
        if size > limits.max_text_bytes:
            raise _refused(
                index,
                f"holds {size} bytes, over the limit of {limits.max_text_bytes}: shorten it or split it",
                "TEXT_TOO_LARGE",
            )


class Tokenizer:
    """open_clip's tokenizer of one model, without its silent cut. Safe to use from several threads.

    Args:
        tokenizer: what `open_clip.get_tokenizer` answered.
        context_length: L, the model's window in tokens.
        vocabulary_size: tokens that the model knows; 0 where that is unknown.
    """

    def __init__(self, tokenizer: Any, context_length: int, vocabulary_size: int = 0) -> None:
        self._tokenizer = tokenizer
        self._window = context_length
        self._vocabulary_size = vocabulary_size
        self._is_simple = hasattr(tokenizer, "encode") and hasattr(tokenizer, "eot_token_id")
        if self._is_simple:
            self._words = WordTokenizer(tokenizer)
        self._encode(["a"])  # a fast tokenizer takes its padding at the first call, and must not in two threads at once

    def rows(self, texts: Sequence[str], long_text: pb.LongText, limits: LimitSettings) -> TokenRows:
        """Token rows of checked texts. Raises InvalidInput naming the text at fault."""
        ids, lengths = self._encode(texts)
        token_counts = np.array(lengths, dtype=np.int32)
        parts = np.ones(len(texts), dtype=np.int32)
        if (token_counts > self._window).any():
            ids, lengths = self._split(texts, ids, lengths, parts, long_text, limits)
        matrix = np.array([row[: self._window] for row in ids], dtype=np.int32)
        if getattr(self._tokenizer, "strip_sep_token", False):
            matrix[matrix == self._tokenizer.tokenizer.sep_token_id] = 0
        if self._vocabulary_size and int(matrix.max()) >= self._vocabulary_size:
            raise InternalError(
                f"the tokenizer made token {int(matrix.max())}, but the model knows {self._vocabulary_size}: the "
                "model's folder holds a tokenizer of another model",
                reason="TOKENIZER_MISMATCH",
            )
        return TokenRows(matrix, np.array(lengths, dtype=np.int32), parts, token_counts)

    def _split(
        self,
        texts: Sequence[str],
        ids: list[list[int]],
        lengths: list[int],
        parts: npt.NDArray[np.int32],
        long_text: pb.LongText,
        limits: LimitSettings,
    ) -> tuple[list[list[int]], list[int]]:
        """Put the sentences of long texts in their place; fills `parts`."""
        out_ids: list[list[int]] = []
        out_lengths: list[int] = []
        for index, text in enumerate(texts):
            if lengths[index] <= self._window:
                out_ids.append(ids[index])
                out_lengths.append(lengths[index])
                continue
            if long_text == pb.LONG_TEXT_REJECT:
                raise self._too_long(index, lengths[index], "shorten it, or ask for LONG_TEXT_SENTENCES")
            pieces = sentences(text) or [text]
            piece_ids, piece_lengths = self._encode(pieces, index)
            if max(piece_lengths) > self._window:
                worst = int(np.argmax(piece_lengths))
                raise self._too_long(
                    index, lengths[index], f"its sentence {worst} alone has {piece_lengths[worst]}: split that sentence"
                )
            parts[index] = len(pieces)
            if int(parts.sum()) > limits.max_texts:
                raise _refused(index, f"makes over {limits.max_texts} sentences with the others", "TOO_MANY_TEXTS")
            out_ids.extend(piece_ids)
            out_lengths.extend(piece_lengths)
        return out_ids, out_lengths

    def _encode(self, texts: Sequence[str], index: int | None = None) -> tuple[list[list[int]], list[int]]:
        """Rows of at least L ids (padded, never cut) and the number of tokens of each.

        `index` is that of the text whose sentences these are.
        """
        rows, lengths = self._encode_simple(texts) if self._is_simple else self._encode_hf(texts)
        for position, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self._check_row(row[:length] if self._is_simple else row, position if index is None else index)
        return rows, lengths

    def _encode_simple(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        tokenizer = self._tokenizer
        rows = [[tokenizer.sot_token_id, *self._words.encode(text), tokenizer.eot_token_id] for text in texts]
        lengths = [len(row) for row in rows]
        return [row + [0] * (self._window - len(row)) for row in rows], lengths

    def _encode_hf(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        wrapper = self._tokenizer
        if getattr(wrapper, "tokenizer_mode", ""):
            return self._encode_clips(texts)
        encoded = wrapper.tokenizer(
            [self._clean(text) for text in texts],
            max_length=self._window,
            padding="max_length",
            truncation=False,
            return_attention_mask=True,
            verbose=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        lengths = [sum(mask) for mask in encoded["attention_mask"]]
        return rows, lengths

    def _encode_clips(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """CLIPS adds its start, end and class tokens itself; of rows over the window only the length is used."""
        wrapper = self._tokenizer
        clean = [self._clean(text) for text in texts]
        plain = wrapper.tokenizer(clean, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return wrapper(list(texts)).tolist(), [len(row) + 3 for row in plain]

    def _clean(self, text: str) -> str:
        if hasattr(self._tokenizer, "clean_fn"):
            return clean(self._tokenizer, text)
        from open_clip.tokenizer import basic_clean, canonicalize_text

        return str(canonicalize_text(basic_clean(text)))

    def _check_row(self, row: list[int], index: int) -> None:
        if self._is_simple:
            if len(row) <= 2:
                raise _refused(index, "holds nothing that the model can read", "TEXT_EMPTY")
            end = self._tokenizer.eot_token_id
            if end in row[:-1] or self._tokenizer.sot_token_id in row[1:]:
                raise _refused(index, "spells a special token, which would end it there: take it out", "TEXT_SPECIAL")
            return
        tokenizer = self._tokenizer.tokenizer
        special = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id}
        inner = [token for token in row if token not in special]
        if not inner:
            raise _refused(index, "holds nothing that the model can read", "TEXT_EMPTY")
        first, last = row.index(inner[0]), len(row) - 1 - row[::-1].index(inner[-1])
        if any(token in special for token in row[first:last]):
            raise _refused(index, "spells a special token, which would end it there: take it out", "TEXT_SPECIAL")

    def _too_long(self, index: int, tokens: int, fix: str) -> InvalidInput:
        return _refused(
            index, f"has {tokens} tokens, over the model's window of {self._window}: {fix}", "TEXT_TOO_LONG", tokens
        )


def _refused(index: int, what: str, reason: str, tokens: int | None = None) -> InvalidInput:
    metadata = {"text_index": str(index)}
    if tokens is not None:
        metadata["token_count"] = str(tokens)
    return InvalidInput(f"texts[{index}] {what}", reason=reason, metadata=metadata)
