"""Words that a text must not contain, because the model's tokenizer does not read them as text.

They are read from the files beside the weights, without transformers or torch: the special tokens that the tokenizer
lists, and the placeholders of pictures, videos and sounds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from sightline.errors import PreconditionFailed

_TOKENIZER: Final = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "added_tokens.json")
_MODEL: Final = ("processor_config.json", "preprocessor_config.json", "config.json")
_PICTURE_IDS: Final = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id")


@dataclass(frozen=True)
class ModelWords:
    """Special tokens of a model.

    Attributes:
        special: as texts, placeholders of pictures included.
        ids: their ids, as far as the files give them, without that of unknown words.
        pictures: ids of placeholders for pictures, videos or sounds: not even a response's last token may be one.
    """

    special: frozenset[str]
    ids: frozenset[int] = frozenset()
    pictures: frozenset[int] = frozenset()

    @classmethod
    def read(cls, model: str) -> ModelWords:
        """Read them for a Hugging Face folder or name.

        Raises:
            PreconditionFailed: MODEL_UNREADABLE: its tokenizer cannot be found or read.
        """
        tokens: dict[str, int | None] = {}
        unknown: str | None = None
        pictures: frozenset[int] = frozenset()
        for name in _TOKENIZER:
            found = _json(model, name)
            if name == "added_tokens.json":  # an old format, which does not mark special tokens
                tokens |= {token: found.get(token) for token in tokens if isinstance(found.get(token), int)}
            else:
                unknown = _content(found.get("unk_token")) or unknown
                tokens |= {token: id_ for token, id_ in _special(found) if id_ is not None or token not in tokens}
        if not tokens:
            tokens, unknown = _by_transformers(model)
        for name in _MODEL:
            found = _json(model, name)
            tokens |= {token: None for token, _ in _special(found) if token not in tokens}
            if name == "config.json":
                pictures = frozenset(found[key] for key in _PICTURE_IDS if isinstance(found.get(key), int))
        ids = frozenset(id_ for token, id_ in tokens.items() if id_ is not None and token != unknown) | pictures
        # A word of letters may be special too, but it occurs in texts.
        special = frozenset(token for token in tokens if len(token) > 2 and not token.isalnum())
        return cls(special, ids, pictures)

    def found_in(self, text: str) -> str | None:
        """The first special token in a text, or None."""
        match = self._pattern.search(text)
        return match[0] if match else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted(self.special, key=lambda word: (-len(word), word))
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")


def _special(found: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """(token, its id if the file has it) of one file of any kind."""
    for key, value in found.items():
        if key.endswith("_token") and (token := _content(value)):
            yield token, None
        elif key in ("additional_special_tokens", "extra_special_tokens"):
            for one in value.values() if isinstance(value, dict) else value or ():
                if token := _content(one):
                    yield token, None
        elif key == "added_tokens_decoder":
            for id_, one in value.items():
                if isinstance(one, dict) and one.get("special") and (token := _content(one)):
                    yield token, int(id_)
        elif key == "added_tokens" and isinstance(value, list):
            for one in value:
                if isinstance(one, dict) and one.get("special") and (token := _content(one)):
                    yield token, one.get("id")


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value.strip() else None


def _json(model: str, name: str) -> dict[str, Any]:
    """A file of the model; empty if it has none."""
    path: str | Path = Path(model) / name
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            path = hf_hub_download(model, name)
        except (OSError, ValueError, HfHubHTTPError, HFValidationError):
            return {}
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _by_transformers(model: str) -> tuple[dict[str, int | None], str | None]:
    """For a tokenizer whose files list no special tokens."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise PreconditionFailed(
            f"model: the tokenizer of {model} cannot be read ({why}); name a folder or a hub's name that has one",
            reason="MODEL_UNREADABLE",
        ) from error
    ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return ids, tokenizer.unk_token
