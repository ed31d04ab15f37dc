"""Fields: which columns of a row are the prompt, its image and its facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput
from sightline.sampler import Turn

from sightline_trainer.pools.asking import PLACEHOLDER, RowAsks, asks, has_places, is_conversation
from sightline_trainer.pools.folder import Folder
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate, text_fault


@dataclass(frozen=True)
class Fields:
    """Names of the columns. If a row has no `id`, a digest of its pictures and question is its id."""

    id: str = "id"
    image: str = "image"
    prompt: str = "prompt"
    reference: str = "reference"
    objects: str = "objects"

    @classmethod
    def named(cls, names: Mapping[str, str], where: str) -> Fields:
        """From `{"prompt": "question"}`.

        Raises:
            InvalidInput: a prompt has no such field.
        """
        if unknown := set(names) - set(cls.__annotations__):
            raise InvalidInput(
                f"{where}: unknown {', '.join(sorted(unknown))}; known are {', '.join(cls.__annotations__)}",
                reason="DATASET",
            )
        return cls(**names)

    def within(self, columns: Collection[str]) -> Fields:
        """The same for a table with these columns: `images` (as in TRL and `sightline export`) are pictures too, and
        the `messages` of chat datasets are prompts."""
        mine = self
        if mine.image == "image" and "image" not in columns and "images" in columns:
            mine = replace(mine, image="images")
        if mine.prompt == "prompt" and "prompt" not in columns and "messages" in columns:
            mine = replace(mine, prompt="messages")
        return mine

    def prompt_of(self, row: Mapping[str, Any], images: Folder, gate: RowGate | None = None) -> Prompt:
        """The prompt of a row.

        Raises:
            InvalidInput: the row lacks a field, a text is not text or cannot be used with the model, or a picture is
                not one; the message says what.
        """
        return self.read(row, images, gate, images.image)

    def read(
        self,
        row: Mapping[str, Any],
        images: Folder,
        gate: RowGate | None,
        place: Callable[[Any], Path | bytes],
    ) -> Prompt:
        """As `prompt_of`, with `place` returning a picture's path, such as `images.picture`, without a copy."""
        mine = self.within(row)
        asked, reference = _asked(row.get(mine.prompt), row.get(mine.image)), said(row.get(mine.reference))
        text = asked.text
        if missing(text):
            raise InvalidInput(_lacking(row, mine.prompt, "prompt"), reason="PROMPT_MISSING")
        passed(text, "prompt", gate)
        for said_before in (part for turn in asked.turns for part in turn.content if part and part.strip()):
            passed(said_before, "prompt", gate)
        if missing(reference) or reference == "":
            reference = asked.answer
        if reference != "":
            passed(reference, "reference", gate)
        if not asked.images and mine.image not in row:
            raise InvalidInput(_lacking(row, mine.image, "image"), reason="IMAGE_MISSING")
        held = [place(image) for image in asked.images or [None]]
        id_ = row.get(mine.id)
        id_ = content_id(held, text, asked.turns) if missing(id_) else str(id_)
        if text_fault(f"id {id_}", "id"):
            raise InvalidInput("its id contains half of a character (a lone surrogate)", reason="ID_HALF_CHARACTER")
        shown = tuple(image if isinstance(image, Path) else Path() for image in held)
        objects = _names(row.get(mine.objects))
        return Prompt(id_, shown, text, reference, objects, asked.turns)


def _lacking(row: Mapping[str, Any], column: str, what: str) -> str:
    """What to do about a row without a column, or with a null there."""
    if column in row:
        return f"its {column} is null"
    if "conversations" in row:
        return f"it has no {column}, but conversations: name LLaVA's file as llava:FILE?images=DIRECTORY"
    named = ", ".join(map(repr, sorted(map(str, row))[:20])) or "nothing"
    return f"it has no {column}, but {named}: name the column of the {what} after ?, as in ?{what}=NAME"


def _asked(value: Any, images: Any) -> RowAsks:
    """The question in a row's columns of prompt and images."""
    shown = list(images) if isinstance(images, list | tuple) else [] if missing(images) else [images]
    if isinstance(value, str) and shown and value.count(PLACEHOLDER) == len(shown) and _marks(value, len(shown)):
        value = [{"role": "user", "content": value}]
    if is_conversation(value) and (len(value) > 1 or value[0]["role"] != "user" or has_places(value[0])):
        return asks(value, shown)
    return RowAsks(said(value), (), shown)


def _marks(text: str, images: int) -> bool:
    """Whether `<image>` in a text marks places: a single one only before or after the text, as LLaVA's data has it."""
    return images > 1 or text.strip().startswith(PLACEHOLDER) or text.strip().endswith(PLACEHOLDER)


def said(value: Any) -> Any:
    """A text, also if given as a conversation of one turn, as in TRL's columns; otherwise the unchanged value."""
    if isinstance(value, list | tuple) and not value:
        return None
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
        value = value.get("content") if isinstance(value, Mapping) else [value]
        if isinstance(value, list | tuple) and all(isinstance(part, Mapping) for part in value):
            texts = [part["text"] for part in value if isinstance(part.get("text"), str)]
            return texts[0] if len(texts) == 1 else value
    return value


def missing(value: Any) -> bool:
    """Whether the value is missing: null, or NaN as pandas writes it."""
    return value is None or (isinstance(value, float) and value != value)


def passed(text: Any, what: str, gate: RowGate | None) -> None:
    """Refuse a text that the gate refuses.

    Raises:
        InvalidInput: with the gate's reason and sentence.
    """
    fault = gate.text(text, what) if gate is not None else text_fault(text, what)
    if fault is not None:
        raise InvalidInput(fault.message, reason=fault.reason)


def _names(value: Any) -> tuple[str, ...]:
    """Names of objects, from a list or from JSON."""
    if missing(value) or value == "":
        return ()
    try:
        names = json.loads(value) if isinstance(value, str) else list(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"its objects are not a list ({error})", reason="OBJECTS_NO_LIST") from None
    if not isinstance(names, list) or any(text_fault(name, "object") for name in names):
        raise InvalidInput("its objects are not a list of names", reason="OBJECTS_NO_LIST")
    return tuple(names)


def content_id(images: Sequence[Path | bytes], text: str, turns: Sequence[Turn] = ()) -> str:
    """The id of a prompt without one: a digest of its pictures' bytes and its text (and earlier turns), wherever they
    are stored."""
    digest = hashlib.sha256()
    for image in images:
        try:
            held = image if isinstance(image, bytes) else image.read_bytes()
        except OSError:  # it is reported and dropped when it is drawn
            held = str(image).encode("utf-8", "surrogateescape")
        digest.update(hashlib.sha256(held).digest())
    said = json.dumps([(turn.role, turn.content) for turn in turns]) if turns else text
    digest.update(said.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:24]
