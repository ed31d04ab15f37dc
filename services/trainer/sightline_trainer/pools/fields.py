"""Fields: which columns of a row are the prompt, its image and what is known about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

from sightline_trainer.pools.folder import Folder
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate, text_fault


@dataclass(frozen=True)
class Fields:
    """Names of the columns. Where a row has no `id`, a digest of its picture and text stands for it."""

    id: str = "id"
    image: str = "image"
    prompt: str = "prompt"
    reference: str = "reference"
    objects: str = "objects"

    @classmethod
    def named(cls, names: Mapping[str, str], where: str) -> Fields:
        """From `{"prompt": "question"}`.

        Raises:
            InvalidInput: for a field that no prompt has.
        """
        if unknown := set(names) - set(cls.__annotations__):
            raise InvalidInput(
                f"{where}: unknown {', '.join(sorted(unknown))}; known are {', '.join(cls.__annotations__)}",
                reason="DATASET",
            )
        return cls(**names)

    def within(self, columns: Collection[str]) -> Fields:
        """The same for a table of these columns: `images`, as TRL and `sightline export` call it, is a picture too."""
        if self.image == "image" and "image" not in columns and "images" in columns:
            return replace(self, image="images")
        return self

    def prompt_of(self, row: Mapping[str, Any], images: Folder, gate: RowGate | None = None) -> Prompt:
        """The prompt of a row.

        Raises:
            InvalidInput: the row lacks something, a text is no text or one that the model cannot take, or the picture
                is none; says what.
        """
        return self.read(row, images, gate, images.image)

    def read(
        self,
        row: Mapping[str, Any],
        images: Folder,
        gate: RowGate | None,
        place: Callable[[Any], Path | bytes],
    ) -> Prompt:
        """As `prompt_of`, with `place` to say where the picture lies, such as `images.picture`, without a copy."""
        mine = self.within(row)
        text, reference = said(row.get(mine.prompt)), said(row.get(mine.reference))
        if missing(text):
            raise InvalidInput(
                f"needs an image and a prompt; {mine.prompt} is missing or null", reason="PROMPT_MISSING"
            )
        passed(text, "prompt", gate)
        if missing(reference) or reference == "":
            reference = ""
        else:
            passed(reference, "reference", gate)
        held = place(row.get(mine.image))
        id_ = row.get(mine.id)
        id_ = content_id(held, text) if missing(id_) else str(id_)
        if text_fault(f"id {id_}", "id"):
            raise InvalidInput("its id holds half of a character (a lone surrogate)", reason="ID_HALF_CHARACTER")
        image = held if isinstance(held, Path) else Path()
        return Prompt(id=id_, image=image, prompt=text, reference=reference, objects=_names(row.get(mine.objects)))


def said(value: Any) -> Any:
    """A text, also where it stands as a conversation of one turn, as in TRL's columns; else the value as it is."""
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
    """Whether there is nothing: null, or NaN as pandas writes it."""
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
    """Names of objects, of a list or of one in JSON."""
    if missing(value) or value == "":
        return ()
    try:
        names = json.loads(value) if isinstance(value, str) else list(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"its objects are no list ({error})", reason="OBJECTS_NO_LIST") from None
    if not isinstance(names, list) or any(text_fault(name, "object") for name in names):
        raise InvalidInput("its objects are no list of names", reason="OBJECTS_NO_LIST")
    return tuple(names)


def content_id(image: Path | bytes, text: str) -> str:
    """The id of a prompt that was given none: a digest of its picture's bytes and its text, wherever both lie."""
    try:
        held = image if isinstance(image, bytes) else image.read_bytes()
    except OSError:  # it is told, and dropped, when it is drawn
        held = str(image).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(hashlib.sha256(held).digest())
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:24]
