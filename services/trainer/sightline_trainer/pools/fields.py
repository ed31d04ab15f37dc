"""Fields: which columns of a row are the prompt, its image and what is known about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

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
