"""Which tokenizer a model has, as recorded in its card, and that tokenizer without open_clip or torch.

There are four kinds. OpenAI's byte pairs, which most CLIP models have, are implemented here. A directory's
`tokenizer.json` is read by the tokenizers library, if transformers would do the same; importing transformers would load
torch if installed. Other transformers tokenizers are loaded by transformers, and the few others are open_clip's own and
need that package.

The merges of `clip_merges.txt.gz` are OpenAI CLIP's (MIT licence, Copyright (c) 2021 OpenAI): those in use of its
`bpe_simple_vocab_16e6.txt.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import regex

from sightline_scorer.bpe import merge
from sightline_scorer.cleaning import CLEANING

_START, _END = "<start_of_text>", "<end_of_text>"
_MERGES = Path(__file__).with_name("clip_merges.txt.gz")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
_SAMPLES = ("a picture", "", "  two  spaces\n", "Ünï 漢字 🙂", "</s> <pad> [SEP]", "word " * 100)


class ClipVocabulary:
    """OpenAI's byte pairs: the ids of open_clip's SimpleTokenizer.

    Args:
        context_length: L, the model's window in tokens.
        clean: a name of CLEANING.
    """

    def __init__(self, context_length: int, clean: str = "lower") -> None:
        self.context_length = context_length
        self.clean_fn = CLEANING[clean]
        self.byte_encoder = _byte_letters()
        self.encoder, self.bpe_ranks = _clip_table()
        self.sot_token_id, self.eot_token_id = self.encoder[_START], self.encoder[_END]
        self.pat = regex.compile(
            rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
        )
        self.cache: dict[str, str] = {}

    def bpe(self, letters: str) -> str:
        """Tokens of a word in byte letters, separated by spaces."""
        return letters if letters in (_START, _END) else " ".join(merge(letters, self.bpe_ranks))


class FileVocabulary:
    """A `tokenizer.json`, with the special tokens that transformers reads beside it.

    Args:
        file: the tokenizer.json.
        context_length: L, the model's window in tokens.
        facts: of `tokenizer_facts`.

    Raises:
        ValueError: the file differs from the one in the model's description.
    """

    tokenizer_mode = ""

    def __init__(self, file: Path, context_length: int, facts: dict[str, Any]) -> None:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError(f"{file} is not the tokenizer that the model was described with: name the same model")
        self._tokenizer = _plain(content.decode())
        self.tokenizer = SimpleNamespace(**facts["special"])
        self.context_length = context_length
        self.clean_fn = CLEANING[facts["clean"]]
        self.strip_sep_token = facts["strip_sep_token"]
        self._pads_left = facts["pads_left"]

    def rows(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text with start and end tokens, of any length. One by one: no thread pool."""
        return [self._tokenizer.encode(text).ids for text in texts]

    def padded(self, ids: list[int]) -> list[int]:
        """Ids padded to the window."""
        padding = [self.tokenizer.pad_token_id] * (self.context_length - len(ids))
        return padding + ids if self._pads_left else ids + padding


class TransformersVocabulary:
    """A transformers tokenizer, as in open_clip's HFTokenizer.

    Args:
        source: a directory or a hub name.
        context_length: L, the model's window in tokens.
        clean: a name of CLEANING; empty for a tokenizer that cleans by itself.
        strip_sep_token: whether separators are 0 for the model.
    """

    tokenizer_mode = ""

    def __init__(self, source: str, context_length: int, clean: str, *, strip_sep_token: bool) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.context_length = context_length
        self.clean_fn = CLEANING[clean] if clean else str
        self.strip_sep_token = strip_sep_token


def tokenizer_facts(tokenizer: Any, architecture: str) -> dict[str, Any]:
    """The facts about a model's open_clip tokenizer for its card."""
    kind = type(tokenizer).__name__
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "").removeprefix("_clean_")
    if clean in CLEANING and kind == "SimpleTokenizer":
        if tokenizer.reduction_fn is None and len(tokenizer.all_special_ids) == 2:
            return {"kind": "clip", "clean": clean}
    elif clean in CLEANING and kind == "HFTokenizer" and not tokenizer.tokenizer_mode:
        local = architecture.startswith("local-dir:")
        file = Path(architecture.removeprefix("local-dir:")) / "tokenizer.json"
        if local and (facts := _file_facts(tokenizer.tokenizer, file)):
            return {**facts, "clean": clean, "strip_sep_token": bool(tokenizer.strip_sep_token)}
        return {
            "kind": "transformers",
            "source": "" if local else str(tokenizer.tokenizer.name_or_path),
            "clean": clean,
            "strip_sep_token": bool(tokenizer.strip_sep_token),
        }
    return {"kind": "open_clip"}


def _file_facts(tokenizer: Any, file: Path) -> dict[str, Any] | None:
    """The facts for `FileVocabulary`, if a transformers tokenizer is only its file; otherwise None."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.pad_token_id is None or not file.is_file():
        return None
    content = file.read_bytes()
    try:
        plain, made = _plain(content.decode()), _plain(tokenizer.backend_tokenizer.to_str())
    except Exception:  # the library raises no narrower error
        return None
    samples = [plain.encode(text).ids for text in _SAMPLES]
    if plain.to_str() != made.to_str() or samples != tokenizer(list(_SAMPLES), verbose=False)["input_ids"]:
        return None
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    digest = hashlib.sha256(content).hexdigest()
    pads_left = tokenizer.padding_side == "left"
    return {"kind": "file", "sha256": digest, "special": special, "pads_left": pads_left}


def _plain(content: str) -> Any:
    """The tokenizer of a tokenizer.json, without padding and truncation."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(content)
    made.no_padding()
    made.no_truncation()
    return made


def vocabulary(facts: dict[str, Any], architecture: str, context_length: int) -> Any:
    """The tokenizer that a card names.

    Args:
        facts: of `tokenizer_facts`.
        architecture: as open_clip takes it; a directory also holds the tokenizer's files.
        context_length: L, the model's window in tokens.

    Raises:
        ImportError: it belongs to transformers or open_clip, which is not installed.
    """
    if facts["kind"] == "clip":
        return ClipVocabulary(context_length, facts["clean"])
    if facts["kind"] == "file":
        return FileVocabulary(Path(architecture.removeprefix("local-dir:")) / "tokenizer.json", context_length, facts)
    if facts["kind"] == "transformers":
        source = facts["source"] or architecture.removeprefix("local-dir:")
        return TransformersVocabulary(source, context_length, facts["clean"], strip_sep_token=facts["strip_sep_token"])
    import open_clip

    return open_clip.get_tokenizer(architecture)


@cache
def _byte_letters() -> dict[int, str]:
    """A letter for each byte: itself if printable, otherwise one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def _clip_table() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Id of each token, rank of each merge."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    letters = list(_byte_letters().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    return {token: number for number, token in enumerate(tokens)}, {pair: rank for rank, pair in enumerate(merges)}
