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
from sightline_trainer.candidates.source import Context, Source
from sightline_trainer.connections import Connections
from sightline_trainer.patience import patiently
from sightline_trainer.pools import side_files
from sightline_trainer.recipe import Recipe
from sightline_trainer.rewards.clip import ClipReward
from sightline_trainer.rewards.judge import Judge
from sightline_trainer.rewards.term import Bench
from sightline_trainer.wording import Wording

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Open clients, and what the loop asks of them. ``evaluation`` samples with its own seeds; ``reward`` is the plain
    CLIPScore that evaluation reports."""

    recipe: Recipe
    sampler: AsyncSamplerClient
    scorer: AsyncScorerClient
    evaluation: PolicyCandidates
    reward: ClipReward
    connect: Callable[[str], AsyncSamplerClient]
    closing: AsyncExitStack

    def sources(self) -> list[Source]:
        """The recipe's sources of candidates, in the order in which they are asked."""
        dataset = side_files(self.recipe.data.train)
        wording = Wording(self.recipe.model)
        context = Context(self.recipe, self.sampler, wording, dataset, self.connect, self.closing)
        opened = [part.open(context) for part in self.recipe.candidates.chosen().values()]
        return [source for source in opened if source is not None]

    def judge(self) -> Judge:
        """The recipe's reward."""
        reward = self.recipe.reward
        bench = Bench(self.recipe, self.sampler, self.scorer, side_files(self.recipe.data.train))
        terms = {name: (term.open(bench), term.weight) for name, term in reward.terms.chosen().items()}
        return Judge(terms, reward.combine)

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


def connected(
    recipe: Recipe, work: Callable[[Session], Coroutine[Any, Any, T]], connections: Connections | None = None
) -> T:
    """Run ``work`` with open clients to the recipe's services.

    Raises:
        SightlineError: what failed; of several failures at once, the first.
    """

    shown = connections or Connections()

    async def main() -> T:
        async with AsyncExitStack() as stack:
            sampling, reward = recipe.sampling.address or "", recipe.reward.address or ""

            def connect(address: str) -> AsyncSamplerClient:
                client = AsyncSamplerClient(address, **shown.credentials(address))
                stack.push_async_callback(client.close)
                return client

            sampler = connect(sampling)
            scorer = await stack.enter_async_context(AsyncScorerClient(reward, **shown.credentials(reward)))
            return await work(
                Session(
                    recipe=recipe,
                    sampler=sampler,
                    scorer=scorer,
                    evaluation=PolicyCandidates(sampler, recipe.sampling, seed=recipe.evaluation.seed),
                    reward=ClipReward(scorer, recipe.reward),
                    connect=connect,
                    closing=stack,
                )
            )

    try:
        return asyncio.run(main())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
