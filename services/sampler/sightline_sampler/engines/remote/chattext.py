"""A model's chat template and tokenizer without PyTorch, for remote engines."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.sampler.turns import Turn
from sightline_chassis.families.rendering import check_texts, write
from tokenizers import Tokenizer

from sightline_sampler.engines.placeholders import refuse_placeholders, refuse_special, spelled

_MOST_UNKNOWN = 512  # servers accept this many biases, and further unknown ids are padding of an embedding
_IMAGE_WORDS = ("image", "video", "vision", "audio", "boi", "eoi")


class ChatText:
    """The text part of a model directory: chat template, tokenizer, and facts about its tokens.

    Args:
        directory: contains `config.json`, `tokenizer.json` and, unless given, a chat template.
        chat_template: a Jinja file instead of the model's own template.

    Raises:
        PreconditionFailed: a file is missing or cannot be read.
    """

    def __init__(self, directory: Path, chat_template: Path | None) -> None:
        if not directory.is_dir():
            raise PreconditionFailed(
                f"engine.model must be a directory for an engine behind HTTP, but {directory} is not: its tokenizer, "
                "chat template and digest are read",
                reason="MODEL_NOT_FOUND",
            )
        self._config = _json(directory / "config.json")
        words = _json(directory / "tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the tokenizers package raises plain Exception
            raise PreconditionFailed(
                f"{directory}/tokenizer.json cannot be read: {error}", reason="TOKENIZER_UNREADABLE"
            ) from error
        self._special = {
            name: value["content"] if isinstance(value, dict) else value
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (value := words.get(name))
        }
        self._template = _environment().from_string(_template_of(directory, words, chat_template))
        self.placeholder_ids = frozenset(self._image_ids())
        tokens = {self._tokenizer.id_to_token(token) for token in self.placeholder_ids}
        self.placeholders = tuple(sorted(token for token in tokens if token))
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special = spelled([*self._special.values(), *(token.content for token in added if token.special)])
        self._mark = self._image_mark()
        self.never_ids = self._never_ids()
        """Ids that must not be sampled, as in the engine in process: placeholders, begin and pad tokens, and ids that
        the tokenizer does not have."""
        bos = self._tokenizer.token_to_id(self._special.get("bos_token", "")) if "bos_token" in self._special else None
        self.adds_bos = bos is not None and self._tokenizer.encode("x").ids[:1] == [bos]
        """Whether tokenizing with special tokens adds the begin token at the front."""

    @property
    def dtype(self) -> str:
        """The number type in the checkpoint's config."""
        return str(self._config.get("dtype") or self._config.get("torch_dtype") or "float16")

    def check(self, turns: Sequence[Turn]) -> None:
        """Refuse a text that would be read as an image, an end or another turn.

        Raises:
            InvalidInput: one contains a placeholder or another special token of the model.
        """
        for text in (part for turn in turns for part in turn.content if part):
            refuse_placeholders(text, self.placeholders)
            refuse_special(text, self.special)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse token ids that cannot be scored.

        Raises:
            InvalidInput: one is an image placeholder, or the tokenizer does not have it.
        """
        for i, token in enumerate(ids):
            if token in self.placeholder_ids or self._tokenizer.id_to_token(token) is None:
                why = "stands for an image" if token in self.placeholder_ids else "is not of the tokenizer"
                raise InvalidInput(f"token_ids[{i}] = {token} {why}", reason="BAD_TOKEN_ID")

    def render(self, turns: Sequence[Turn]) -> str:
        """The rendered prompt, ready for the answer; images are placeholders.

        Raises:
            InvalidInput: a text contains a placeholder, or the template refuses or omits something.
        """
        self.check(turns)

        def template(messages: list[dict[str, Any]]) -> str:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)

        rendered = write(template, turns)
        check_texts(turns, rendered)
        return rendered

    def around_images(self, rendered: str, images: int) -> list[str]:
        """The parts of a rendered prompt before, between and after the images' places.

        Raises:
            PreconditionFailed: the numbers of the template's places and of images differ.
        """
        parts = self._mark.split(rendered)
        if len(parts) != images + 1:
            raise PreconditionFailed(
                f"the chat template sets {len(parts) - 1} places for {images} images", reason="NO_CHAT_TEMPLATE"
            )
        return parts

    def without_bos(self, rendered: str) -> str:
        """The text without a leading begin token, if tokenizing will add one, so that there are not two."""
        return rendered.removeprefix(self._special["bos_token"]) if self.adds_bos else rendered

    def wants_special(self, rendered: str) -> bool:
        """Whether to add special tokens when a rendered prompt is tokenized: not if the template wrote the begin token
        itself."""
        bos = self._special.get("bos_token")
        return not (bos and rendered.startswith(bos))

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int], *, special: bool) -> str:
        """The text of token ids, with or without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special))

    def continuation(self, rendered: str, ids: list[int]) -> str | None:
        """A text that gives exactly these ids when it follows a rendered prompt; None if there is none.

        The tokenizer may write a word's first piece with or without its own space, so the decoded text is tried with
        and without a leading space.
        """
        before = self.encode(rendered)
        plain = self.decode(ids, special=True)
        for text in (plain, f" {plain}", plain.removeprefix(" ")):
            if self.encode(rendered + text) == before + ids:
                return text
        return None

    def _never_ids(self) -> frozenset[int]:
        text = self._config.get("text_config") or self._config
        special = {self._tokenizer.token_to_id(self._special.get(name, "")) for name in ("bos_token", "pad_token")}
        ends = {self._tokenizer.token_to_id(self._special.get("eos_token", ""))}
        size = int(text.get("vocab_size") or 0)
        unknown = [token for token in range(size) if self._tokenizer.id_to_token(token) is None]
        never = {*self.placeholder_ids, *special, *unknown[:_MOST_UNKNOWN]} - ends
        return frozenset(token for token in never if token is not None)

    def _image_ids(self) -> set[int]:
        return {
            value
            for name, value in self._config.items()
            if name.endswith(("token_id", "token_index"))
            and any(word in name for word in _IMAGE_WORDS)
            and isinstance(value, int)
            and value >= 0
        }

    def _image_mark(self) -> re.Pattern[str]:
        """The image's place as written by templates: its token, and the tokens around it."""
        image = {
            self._tokenizer.id_to_token(value)
            for name, value in self._config.items()
            if name in ("image_token_id", "image_token_index") and isinstance(value, int)
        }
        around = [re.escape(token) for token in self.placeholders if token not in image]
        optional = f"(?:{'|'.join(around)})?" if around else ""
        return re.compile(f"{optional}(?:{'|'.join(re.escape(token) for token in image if token) or '(?!)'}){optional}")


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PreconditionFailed(f"{path} cannot be read: {error}", reason="MODEL_UNREADABLE") from error
    return dict(tree)


def _template_of(directory: Path, words: dict[str, Any], given: Path | None) -> str:
    if given is not None:
        return given.read_text(encoding="utf-8")
    if (file := directory / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    if (file := directory / "chat_template.json").exists():
        return str(_json(file)["chat_template"])
    if isinstance(words.get("chat_template"), str):
        return str(words["chat_template"])
    raise PreconditionFailed(
        f"{directory} has no chat template: name a Jinja file in engine.chat_template", reason="NO_CHAT_TEMPLATE"
    )


def _environment() -> jinja2.Environment:
    """Set up as in transformers, so that the same template gives the same text."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
