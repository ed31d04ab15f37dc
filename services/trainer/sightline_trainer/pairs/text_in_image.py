"""`text_in_image`: drop images with writing in them, which inflates CLIPScores (CLIP-DPO's rule). Off by default.

It uses `tesseract`, if installed. The command is fixed: a recipe comes from any caller who may start a run, and must
not name programs.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from pydantic import Field
from sightline.errors import PreconditionFailed

from sightline_trainer.pairs.filter import FilterPart
from sightline_trainer.records.prompt import Prompt


class TextInImage(FilterPart):
    """Drop prompts with writing in an image."""

    max_letters: int = Field(3, ge=0, description="Maximum number of letters and digits in an image.")
    timeout_seconds: float = Field(30.0, gt=0.0, description="Longest time per image.")

    def prompt_fault(self, prompt: Prompt) -> str | None:
        fits = all(_letters(image, self.timeout_seconds) <= self.max_letters for image in prompt.images)
        return None if fits else "text_in_image"


@functools.lru_cache(maxsize=100_000)
def _letters(image: Path, seconds: float) -> int:
    program = shutil.which("tesseract")
    if program is None:
        raise PreconditionFailed(
            "filters.text_in_image needs tesseract, which is not installed: install it (Debian: tesseract-ocr) or "
            "leave "
            "the filter out",
            reason="OCR_MISSING",
        )
    command = [program, str(image), "stdout", "--psm", "11"]  # sparse text, in any order
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)  # noqa: S603
    except (subprocess.SubprocessError, OSError) as error:
        raise PreconditionFailed(f"{' '.join(command)} failed: {error}", reason="OCR_FAILED") from error
    return sum(letter.isalnum() for letter in done.stdout)
