"""Programs: what a recipe runs beside the trainer must be installed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sightline.errors import SightlineError
from sightline_chassis.families.quantized import refuse_missing

from sightline_trainer.preflight.finding import Finding
from sightline_trainer.recipe import Recipe


def programs(recipe: Recipe) -> Iterator[Finding]:
    """LAUNCHER_UNUSABLE: the update's launcher is not installed; QUANTIZATION_UNAVAILABLE: bitsandbytes is not;
    OCR_MISSING: tesseract is not."""
    if recipe.dpo.launch:
        here = str(Path(sys.executable).parent)
        if shutil.which(recipe.dpo.launch[0], path=f"{here}{os.pathsep}{os.environ.get('PATH', '')}") is None:
            yield Finding(
                "LAUNCHER_UNUSABLE",
                f"dpo.launch can't be run: there is no {recipe.dpo.launch[0]}",
                "install it here, or leave dpo.launch empty",
            )
    if recipe.quantization is not None:
        try:
            refuse_missing()
        except SightlineError as error:
            yield Finding(error.reason, error.message, "install it here, or leave quantization out")
    if "text_in_image" in recipe.filters.chosen() and shutil.which("tesseract") is None:
        yield Finding(
            "OCR_MISSING",
            "filters.text_in_image needs tesseract, which is not installed",
            "install it (Debian: tesseract-ocr) or leave the filter out",
        )
