"""Preflight: what would end a run after hours is looked for before any work: limits, models, files, programs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from sightline.errors import PreconditionFailed

from sightline_trainer.needs import Needs
from sightline_trainer.recipe import Recipe
from sightline_trainer.session import Session


async def preflight(session: Session) -> None:
    """See that the services allow what the recipe asks of them, and that its parts find what they stand on.

    Raises:
        PreconditionFailed: they do not; LIMIT_TOO_LOW names the recipe's key and the service's.
        SightlineError: a service is away, or a part lacks a file.
    """
    recipe, needs = session.recipe, Needs.of(session.recipe)
    can = (await session.sampler.policies()).capabilities
    _allowed(needs.candidates_key, needs.candidates, "sampler", "limits.max_candidates", can.max_candidates)
    _allowed("sampling.max_tokens", needs.tokens, "sampler", "limits.max_tokens", can.max_tokens)
    scorer = await session.scorer.list_models()
    _allowed("texts of a prompt", needs.texts, "scorer", "limits.max_texts", scorer.limits.max_texts)
    names = [model.name for model in scorer.models]
    if recipe.reward.model and recipe.reward.model not in names:
        raise PreconditionFailed(
            f"reward.model is {recipe.reward.model}, and the scorer has {', '.join(names)}", reason="MODEL_NOT_FOUND"
        )
    session.sources()
    session.judge()
    _programs(recipe)


def _allowed(key: str, wanted: int, service: str, setting: str, most: int) -> None:
    if wanted > most:
        raise PreconditionFailed(
            f"{key}: {wanted} are wanted, and the {service} allows {most}; lower that, or raise its {setting}",
            reason="LIMIT_TOO_LOW",
        )


def _programs(recipe: Recipe) -> None:
    if recipe.dpo.launch:
        here = str(Path(sys.executable).parent)
        if shutil.which(recipe.dpo.launch[0], path=f"{here}{os.pathsep}{os.environ.get('PATH', '')}") is None:
            raise PreconditionFailed(
                f"dpo.launch can't be run: there is no {recipe.dpo.launch[0]}", reason="LAUNCHER_UNUSABLE"
            )
    if "text_in_image" in recipe.filters.chosen() and shutil.which("tesseract") is None:
        raise PreconditionFailed(
            "filters.text_in_image needs tesseract, which is not there: install it (Debian: tesseract-ocr) or leave "
            "the filter out",
            reason="OCR_MISSING",
        )
