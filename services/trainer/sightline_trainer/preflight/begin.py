"""The checks at a run's start and in StartRun. What would end the run is an error, the rest is a warning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from sightline_trainer.pools import Pool
from sightline_trainer.preflight import data, disk, memory
from sightline_trainer.preflight.finding import Finding, refuse
from sightline_trainer.preflight.known_models import KnownModels
from sightline_trainer.preflight.model import checkpoint, headless, sizes
from sightline_trainer.preflight.programs import programs
from sightline_trainer.preflight.services import parts, services
from sightline_trainer.preflight.sizes import Sizes
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.session import Session


def asked_for(recipe: Recipe, known: KnownModels) -> Iterator[Finding]:
    """Checks of a recipe when a run is requested: no service is called and no model is built.

    Args:
        known: checkpoints that need not be checked again.
    """
    yield from programs(recipe)
    yield from known.checkpoint(recipe.processor)


def without_services(recipe: Recipe) -> tuple[Sizes | None, list[Finding]]:
    """Check programs and model; returns the model's sizes if it can be built."""
    found, model = list(programs(recipe)), list(checkpoint(recipe.processor))
    if model:
        of_template = {finding.code for finding in model} <= {"NO_CHAT_TEMPLATE", "CHAT_TEMPLATE_UNUSABLE"}
        return None, found + (list(headless(recipe)) if of_template else []) + model
    known, layers = sizes(recipe)
    return known, found + layers


async def begin(session: Session, train: Pool) -> list[Finding]:
    """Check before any work that the services allow what the recipe needs, and that model, data and machine fit it.

    Args:
        train: the pool of prompts. The test set passed the gate when it was opened.

    Returns:
        Warnings.

    Raises:
        PreconditionFailed: something would end the run; the reason is the first finding's code.
    """
    drawn = await asyncio.to_thread(data.spread, train)
    found = await services(session, drawn)
    if not found:
        found += parts(session)
    found += await asyncio.to_thread(lambda: list(_alone(session, train, drawn)))
    return refuse(found)


def _alone(session: Session, train: Pool, drawn: Sequence[Prompt]) -> Iterator[Finding]:
    recipe = session.recipe
    known, found = without_services(recipe)
    yield from found
    seen, found = data.usable("data.train", drawn, session.gate, strict=False, whole=known is not None)
    yield from found
    if known is None or session.policies is None:
        return
    length = session.gate.length(seen.readable[0]) if seen.readable else None
    yield from memory.too_large(memory.estimate(recipe, known, prompt=length), strict=False)
    prompts = min(recipe.data.prompts_per_iteration, len(train))
    wanted = disk.needed(recipe, known, prompts=prompts, image_bytes=seen.image_bytes)
    yield from disk.too_full(wanted, session.policies.root, strict=False)
