"""``text_in_image``: drop images with writing in them, which inflates CLIPScores (CLIP-DPO's rule). Off by default.

Reading is a port: any program that takes an image file as its last argument and prints the text it finds, such as
``tesseract``'s command line.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from pydantic import Field
from sightline_chassis.errors import PreconditionFailed

from sightline_trainer.pairs.filter import FilterPart
from sightline_trainer.prompts import Prompt


class TextInImage(FilterPart):
    """Drop images that hold writing."""

    reader: tuple[str, ...] = Field(
        ("tesseract", "{image}", "stdout", "--psm", "11"),
        min_length=1,
        description="Command that prints what is written in the file {image}.",
    )
    max_letters: int = Field(3, ge=0, description="Letters and digits that an image may hold.")
    timeout_seconds: float = Field(30.0, gt=0.0, description="Longest wait for one image.")

    def prompt_fault(self, prompt: Prompt) -> str | None:
        letters = _letters(self.reader, self.timeout_seconds, prompt.image)
        return "text_in_image" if letters > self.max_letters else None


@functools.lru_cache(maxsize=100_000)
def _letters(reader: tuple[str, ...], seconds: float, image: Path) -> int:
    if shutil.which(reader[0]) is None:
        raise PreconditionFailed(
            f"filters.text_in_image needs {reader[0]}, which is not there: install it (Debian: tesseract-ocr), name "
            "another command in filters.text_in_image.reader, or leave the filter out",
            reason="OCR_MISSING",
        )
    command = [part.replace("{image}", str(image)) for part in reader]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)  # noqa: S603
    except (subprocess.SubprocessError, OSError) as error:
        raise PreconditionFailed(f"{' '.join(command)} failed: {error}", reason="OCR_FAILED") from error
    return sum(letter.isalnum() for letter in done.stdout)
