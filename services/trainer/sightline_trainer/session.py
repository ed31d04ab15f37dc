"""Session: the loop's connections to a sampler and a scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline.sampler import AsyncSamplerClient
from sightline.scorer import AsyncScorerClient

from sightline_trainer.candidates.guarded import GuardedSource
from sightline_trainer.candidates.source import Source, SourceContext
from sightline_trainer.connections import Connections
from sightline_trainer.decoder_options import DecoderOptions
from sightline_trainer.decoding_settings import Decoding
from sightline_trainer.detector import Detector
from sightline_trainer.detectors import HttpDetector, ScorerDetector
from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.fleet import Fleet, is_fleet
from sightline_trainer.outage import OUTAGE_SECONDS, outliving
from sightline_trainer.policy_candidates import PolicyCandidates
from sightline_trainer.pools import side_files
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import PROMPT_REASONS, Prompt
from sightline_trainer.rewards.clip import Clip, ClipScores
from sightline_trainer.rewards.guarded import Guarded
from sightline_trainer.rewards.judge import Judge
from sightline_trainer.rewards.term import TermContext
from sightline_trainer.row_gate import RowGate
from sightline_trainer.same_pictures import check_sampler, check_scorer
from sightline_trainer.serving import RunPolicies, ServedSampler, serve

T = TypeVar("T")

HALT_SECONDS = 0.25


@dataclass(frozen=True)
class Session:
    """Open clients, and the loop's calls to them. `evaluation` samples with its own seeds; `reward` is the plain
    CLIPScore that evaluation reports."""

    recipe: Recipe
    sampler: AsyncSamplerClient
    scorer: AsyncScorerClient
    evaluation: PolicyCandidates
    reward: ClipScores
    policies: RunPolicies | None
    gate: RowGate
    connect: Callable[[str, float], AsyncSamplerClient]
    closing: AsyncExitStack

    def sources(self) -> list[Source]:
        """The recipe's sources of candidates, in the order in which they run."""
        dataset = side_files(self.recipe.data.train)
        context = SourceContext(
            self.recipe.sampling,
            self.recipe.seed,
            self.sampler,
            self.gate,
            dataset,
            self.connect,
            self.closing,
            lambda settings, seed: self.decoder(settings, seed, dataset),
        )
        theirs = self.recipe.candidates.opened()
        chosen = self.recipe.candidates.chosen()
        opened = {
            name: _opened(name, part, context) if name in theirs else part.open(context)
            for name, part in chosen.items()
        }
        return [
            GuardedSource(name, source, chosen[name].writes) if name in theirs else source
            for name, source in opened.items()
            if source is not None
        ]

    def judge(self) -> Judge:
        """The recipe's reward."""
        reward = self.recipe.reward
        chosen, theirs = reward.terms.chosen(), reward.terms.opened()
        context = TermContext(
            self.recipe.reward,
            self.sampler,
            self.scorer,
            side_files(self.recipe.data.train),
            self.gate,
            self.connect,
            self.closing,
            kept=None if self.policies is None else self.policies.root.parent / "judgements",
            names={id(part): name for name, part in chosen.items()},
        )
        terms = {
            name: (Guarded(name, _opened(name, part, context)) if name in theirs else part.open(context), part.weight)
            for name, part in chosen.items()
        }
        return Judge(terms, reward.combine)

    def decoder(self, settings: Decoding, seed: int, dataset: Path) -> DecoderOptions:
        """Options for a decoding; its objects are those in the dataset's vocabulary.json.

        Raises:
            InvalidInput: the vocabulary is needed, but missing.
        """
        other = settings.guidance.prompted if settings.guidance is not None else None
        if other is None or "{objects}" not in other.template:
            return DecoderOptions(settings, seed)
        if other.url is not None:
            detector: Detector = HttpDetector(other.url, other.timeout_seconds)
            self.closing.push_async_callback(detector.close)
        else:
            detector = ScorerDetector(other.object_template, ClipScores(self.scorer, self.recipe.reward))
        objects = sorted(Vocabulary.load(dataset / "vocabulary.json").objects)
        return DecoderOptions(settings, seed, detector, objects)

    def decoded(self) -> PolicyCandidates:
        """As `evaluation`, with the recipe's decoding."""
        settings = self.recipe.evaluation
        decoder = self.decoder(settings.decoding, settings.seed, side_files(self.recipe.data.test))
        return PolicyCandidates(self.sampler, self.recipe.sampling, seed=settings.seed, decoder=decoder)

    async def try_decoding(self, prompt: Prompt) -> None:
        """Answer a prompt by the base model with `evaluation.decoding`: an engine that lacks it refuses now, and not
        after an update.

        Raises:
            SightlineError: it refuses, or the detector or its vocabulary cannot be used.
        """
        if self.recipe.evaluation.decoding.plain:
            return
        try:
            await self.decoded()(prompt, 1, iteration=0, version=0, temperature=self.recipe.evaluation.temperature)
        except InvalidInput as error:
            if not error.reason.startswith(PROMPT_REASONS):  # others may be answered
                raise

    async def highest_version(self) -> int:
        """The highest policy version of this run that the sampler ever got."""
        return (await self.sampler.policies()).highest_version

    async def serve(self, version: int) -> None:
        """Make sure that the sampler answers from `version`; only in a session with policies."""
        policies = self.policies
        assert policies is not None
        await self.at_each(lambda one: serve(one, version, policies), f"serve policy {version}")

    async def in_flight(self) -> int:
        """Prompts in flight at the same time; each sampler of a fleet gets as many as a single one would."""
        samplers = len(await self.sampler.members()) if isinstance(self.sampler, Fleet) else 1
        return self.recipe.sampling.max_in_flight * samplers

    async def at_each(self, work: Callable[[Any], Awaitable[object]], what: str) -> None:
        """Do something at the sampler, or at each sampler of a fleet. Raises SightlineError."""
        if isinstance(self.sampler, Fleet):
            await self.sampler.each(work, what, self.recipe.publication.deadline_seconds)
        else:
            await work(self.sampler)


def connected(
    recipe: Recipe,
    work: Callable[[Session], Coroutine[Any, Any, T]],
    *,
    policies: RunPolicies | None,
    gate: RowGate | None = None,
    connections: Connections | None = None,
    halt: Callable[[], None] = lambda: None,
    outage_seconds: float = OUTAGE_SECONDS,
    same_pictures: bool = True,
) -> T:
    """Run `work` with open clients to the recipe's services.

    Args:
        policies: the run's policies, which a sampler that lost them gets again; None changes nothing at the sampler.
        gate: the gate of the recipe's model, if there is one already.
        connections: credentials for the services.
        halt: called several times a second; an exception from it stops the work.
        outage_seconds: how long a service may stay unavailable.
        same_pictures: whether to refuse services that read pictures by another rule; otherwise `work` checks that.

    Raises:
        PreconditionFailed: a service reads pictures by another rule than the update.
        SightlineError: the failure; the first if there are several.
    """

    shown = connections or Connections()

    async def main() -> T:
        async with AsyncExitStack() as stack:
            sampling, reward = recipe.sampling.address or "", recipe.reward.address or ""

            def connect(address: str, try_seconds: float) -> AsyncSamplerClient:
                client = AsyncSamplerClient(
                    address, **outliving(try_seconds, outage_seconds), **shown.credentials(address)
                )
                stack.push_async_callback(client.close)
                return client

            patient = outliving(recipe.sampling.timeout_seconds, outage_seconds)
            sampler: ServedSampler
            if is_fleet(sampling):
                sampler = Fleet(
                    sampling,
                    policies=policies,
                    outage_seconds=outage_seconds,
                    quorum=recipe.publication.quorum,
                    try_seconds=recipe.sampling.timeout_seconds,
                    **patient,
                    **shown.credentials(sampling),
                )
            else:
                sampler = ServedSampler(sampling, policies=policies, **patient, **shown.credentials(sampling))
            stack.push_async_callback(sampler.close)
            patient = outliving(recipe.reward.timeout_seconds, outage_seconds)
            scorer = await stack.enter_async_context(AsyncScorerClient(reward, **patient, **shown.credentials(reward)))
            if same_pictures:
                await check_sampler(sampler, sampling)
                await check_scorer(scorer, reward)
            session = Session(
                recipe=recipe,
                sampler=sampler,
                scorer=scorer,
                evaluation=PolicyCandidates(sampler, recipe.sampling, seed=recipe.evaluation.seed),
                reward=_held_out_reward(scorer, recipe),
                policies=policies,
                gate=gate or RowGate(recipe.processor),
                connect=connect,
                closing=stack,
            )
            return await _until(work(session), halt)

    try:
        return asyncio.run(main())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


def _opened(name: str, part: Any, context: SourceContext | TermContext) -> Any:
    """The source or term of a third-party part.

    Raises:
        PreconditionFailed: PART_UNUSABLE, it raised.
    """
    try:
        return part.open(context)
    except SightlineError:
        raise
    except (Exception, SystemExit) as error:
        raise PreconditionFailed(
            f"{name} cannot be opened: {type(error).__name__}: {error}"[:500] + "; correct the part",
            reason="PART_UNUSABLE",
        ) from error


def _held_out_reward(scorer: AsyncScorerClient, recipe: Recipe) -> ClipScores:
    """CLIPScore of held-out answers, with the same choice of a prompt's images as in the recipe's reward."""
    terms = recipe.reward.terms.chosen().values()
    clip = next((term for term in terms if isinstance(term, Clip)), Clip())
    return ClipScores(scorer, recipe.reward, images=clip.images)


async def _until(work: Coroutine[Any, Any, T], halt: Callable[[], None]) -> T:
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=HALT_SECONDS))[0]:
            halt()
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
