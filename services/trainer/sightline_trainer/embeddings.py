"""Embeddings: pictures' embeddings by the scorer's tower, for a loss that compares prompts (RPO)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sightline.errors import InvalidInput

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.session import Session


async def embeddings(session: Session, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    """{prompt id: unit vector} from the recipe's scorer, for a prompt's first picture. A refused picture has none (and
    no candidates).

    Raises:
        SightlineError: the scorer stays unavailable, or fails for another reason than a picture.
    """
    settings = session.recipe.reward
    slots = asyncio.Semaphore(settings.max_in_flight)

    async def one(prompt: Prompt) -> list[float]:
        async with slots:
            try:
                found = await session.scorer.embed(prompt.images[:1], model=settings.model)
                return [float(value) for value in found.image_matrix()[0]]
            except InvalidInput:
                return []

    vectors = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return {prompt.id: vector for prompt, vector in zip(prompts, vectors, strict=True) if vector}
