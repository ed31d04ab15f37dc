"""Session: the loop's open line to a sampler and a scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sightline_sampler.client import AsyncSamplerClient, policy_dirname
from sightline_scorer.client import AsyncScorerClient

from sightline_trainer.candidates.policy import PolicyCandidates
from sightline_trainer.patience import patiently
from sightline_trainer.recipe import Recipe
from sightline_trainer.rewards.clip import ClipReward

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Open clients, and what the loop asks of them. ``evaluation`` differs from ``candidates`` by its seeds."""

    sampler: AsyncSamplerClient
    candidates: PolicyCandidates
    evaluation: PolicyCandidates
    reward: ClipReward

    async def highest_version(self) -> int:
        """The highest policy version that the sampler knows."""
        return max(policy.version for policy in (await patiently(self.sampler.policies)).policies)

    async def serve(self, version: int, policies: Path) -> None:
        """Make sure that the sampler answers from ``version``: after a restart of either side it may not."""
        known = {policy.version for policy in (await patiently(self.sampler.policies)).policies}
        if version not in known:
            await patiently(lambda: self.sampler.stage(policies / policy_dirname(version), version))
        if (await patiently(self.sampler.policy)).version != version:
            await patiently(lambda: self.sampler.activate(version))


def connected(recipe: Recipe, work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` with open clients to the recipe's services.

    Raises:
        SightlineError: what failed; of several failures at once, the first.
    """

    async def main() -> T:
        async with AsyncExitStack() as stack:
            sampler = await stack.enter_async_context(AsyncSamplerClient(recipe.sampling.address or ""))
            scorer = await stack.enter_async_context(AsyncScorerClient(recipe.reward.address or ""))
            return await work(
                Session(
                    sampler=sampler,
                    candidates=PolicyCandidates(sampler, recipe.sampling, seed=recipe.seed),
                    evaluation=PolicyCandidates(sampler, recipe.sampling, seed=recipe.evaluation.seed),
                    reward=ClipReward(scorer, recipe.reward),
                )
            )

    try:
        return asyncio.run(main())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
