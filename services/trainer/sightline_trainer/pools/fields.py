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
    """Names of the columns. `id` may be missing in a table: the row's number stands for it."""

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

    def prompt_of(self, row: Mapping[str, Any], image: Path, id_: str | None = None) -> Prompt:
        """The prompt of a row.

        Raises:
            KeyError, TypeError, ValueError: the row lacks something, or it is no text.
        """
        text, reference = row[self.prompt], row.get(self.reference) or ""
        if not isinstance(text, str) or not isinstance(reference, str):
            raise TypeError(f"{self.prompt} and {self.reference} must be texts")
        objects = row.get(self.objects) or ()
        return Prompt(
            id=str(row[self.id]) if id_ is None else id_,
            image=image,
            prompt=text,
            reference=reference,
            objects=tuple(json.loads(objects) if isinstance(objects, str) else objects),
        )


def image_path(value: Any, base: Path, cache: Path | None) -> Path:
    """Where an image lies: a path as it stands, relative to `base`; bytes are written under `cache` once.

    Args:
        value: a path, encoded bytes, `{"bytes": ..., "path": ...}` as `datasets` stores images, or a PIL image.

    Raises:
        InvalidInput: it is none of these, or there is no cache for bytes.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return base / value
    if hasattr(value, "save"):  # a PIL image
        value = image_bytes(value)
    if not isinstance(value, bytes) or cache is None:
        raise InvalidInput(f"an image must be a path or bytes, not {type(value).__name__}", reason="DATASET_IMAGE")
    digest = hashlib.sha256(value).hexdigest()
    path = cache / digest[:2] / digest
    if not path.exists():
        write_whole(path, lambda aside: aside.write_bytes(value))
    return path
