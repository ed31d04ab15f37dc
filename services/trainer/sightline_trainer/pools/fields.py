"""Fields: which columns of a row are the prompt, its image and what is known about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

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
