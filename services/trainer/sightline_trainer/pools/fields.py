"""Fields: which columns of a row are the prompt, its image and what is known about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput
from sightline.pictures import image_bytes

from sightline_trainer.files import write_whole
from sightline_trainer.records.prompt import Prompt


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

    def prompt_of(self, row: Mapping[str, Any], image: Path) -> Prompt:
        """The prompt of a row.

        Raises:
            KeyError, TypeError, ValueError: the row lacks something, or it is no text.
        """
        text, reference = row[self.prompt], row.get(self.reference) or ""
        if not isinstance(text, str) or not isinstance(reference, str):
            raise TypeError(f"{self.prompt} and {self.reference} must be texts")
        objects = row.get(self.objects) or ()
        return Prompt(
            id=content_id(image, text) if row.get(self.id) is None else str(row[self.id]),
            image=image,
            prompt=text,
            reference=reference,
            objects=tuple(json.loads(objects) if isinstance(objects, str) else objects),
        )


def content_id(image: Path | bytes, text: str) -> str:
    """The id of a prompt that was given none: a digest of its picture's bytes and its text, wherever both lie."""
    try:
        held = image if isinstance(image, bytes) else image.read_bytes()
    except OSError:  # it is told, and dropped, when it is drawn
        held = str(image).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(hashlib.sha256(held).digest())
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:24]


def picture(value: Any, base: Path) -> Path | bytes:
    """A picture of a row: a path as it stands, relative to `base`, or its encoded bytes.

    Args:
        value: a path, encoded bytes, `{"bytes": ..., "path": ...}` as `datasets` stores images, or a PIL image.

    Raises:
        InvalidInput: it is none of these.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return base / value
    if hasattr(value, "save"):  # a PIL image
        return image_bytes(value)
    if not isinstance(value, bytes):
        raise InvalidInput(f"an image must be a path or bytes, not {type(value).__name__}", reason="DATASET_IMAGE")
    return value


def image_path(value: Any, base: Path, cache: Path | None) -> Path:
    """Where a `picture` lies; bytes are written under `cache` once.

    Raises:
        InvalidInput: it is no picture, or there is no cache for bytes.
    """
    found = picture(value, base)
    if isinstance(found, Path):
        return found
    if cache is None:
        raise InvalidInput("an image must be a path here, not bytes", reason="DATASET_IMAGE")
    digest = hashlib.sha256(found).hexdigest()
    path = cache / digest[:2] / digest
    if not path.exists():
        write_whole(path, lambda aside: aside.write_bytes(found))
    return path
