"""Several vLLMs with one base model behind one sampler: each holds the policies, and each proves them.

vLLM's load call reaches one replica, and behind a load balancer the others answer as the base model, with 200. So each
replica is called by its own address, and a policy is staged at all of them, proved at each, and only then used. A
replica that fails or shows other weights is left out and named in the log, if a quorum took the policy. When it is
back, it gets what it lacks, and is compared with a proved replica before it is used again.

An image's requests go to the same replica, which has it in its caches; if that one fails, the missing candidates come
from the next, with their seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from sightline.errors import Overloaded, SightlineError, Unavailable
from sightline.sampler.manifest import PolicyManifest
from sightline.sampler.types import Candidate, Capabilities, Summary, TokenScores

from sightline_sampler.engine_settings import EngineSettings
from sightline_sampler.engines.base import Engine, Proof, SampleWork, ScoreWork, StagedWeights
from sightline_sampler.engines.remote.replica import Replica, Round, in_order
from sightline_sampler.engines.remote.vllm import VllmEngine
from sightline_sampler.settings import SamplerLimits

T = TypeVar("T")

logger = logging.getLogger(__name__)

_OTHERS_SECONDS = 30.0  # how long to wait for the others after the first one is up
_AGAIN = 5  # checks before one that could not be updated is retried
_OVER_SECONDS = 2.0  # how long a failing replica is retried before another one is used


class VllmReplicas(Engine):
    """See the module.

    Args:
        settings: `vllm.replicas` has their addresses; the rest is the same for all.
        limits: limits of images and candidates.
    """

    name: ClassVar[str] = "vllm"

    def __init__(self, settings: EngineSettings, limits: SamplerLimits) -> None:
        self._vllm = settings.vllm
        self._replicas = []
        for number, url in enumerate(settings.vllm.replicas):
            own = settings.vllm.model_copy(update={"url": url, "overload_seconds": _OVER_SECONDS})
            one = VllmEngine(settings.model_copy(update={"vllm": own}), limits, f"vllm-{number}")
            self._replicas.append(Replica(one))
        self._staged: dict[int, tuple[Path, PolicyManifest]] = {}
        self._active = 0
        self._proof: Proof | None = None
        self._changes = asyncio.Lock()  # one change of the replicas' policies at a time
        self._resting = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Wait for the first replica, and a moment for the others, which may start later."""
        starts = [asyncio.create_task(replica.engine.start()) for replica in self._replicas]
        digest: str | None = None
        for done in asyncio.as_completed(starts):
            with contextlib.suppress(SightlineError):
                digest = await done
                break
        if digest is None:
            return starts[0].result()  # raises
        await asyncio.wait(starts, timeout=_OTHERS_SECONDS)
        for replica, start in zip(self._replicas, starts, strict=True):
            if start.done() and start.exception() is None:
                replica.admit()
            else:
                replica.leave_out("it does not start")
            self._tasks.append(asyncio.create_task(self._tend(replica, start)))
        return digest

    async def stop(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(replica.engine.stop() for replica in self._replicas))

    def ready(self) -> str | None:
        """None if one can be used."""
        if any(replica.answers() for replica in self._replicas):
            return None
        return "; ".join(f"{replica.engine.called}: {replica.why()}" for replica in self._replicas)

    def capabilities(self) -> Capabilities:
        """What each can do."""
        return next((one for one in self._replicas if one.answers()), self._replicas[0]).engine.capabilities()

    def parts(self) -> Sequence[Engine]:
        """Replicas that answer."""
        return [replica.engine for replica in self._replicas if replica.answers()]

    def quorum(self) -> int:
        """How many replicas must hold a policy."""
        return max(1, math.ceil(self._vllm.quorum * len(self._replicas)))

    def leave_out(self, part: Engine, why: str) -> None:
        """Do not use a replica until it has proved what it holds."""
        next(one for one in self._replicas if one.engine is part).leave_out(why, failed=True)

    def on_return(self, proof: Proof) -> None:
        """Set how a replica that is back proves itself."""
        self._proof = proof

    def derive_seeds(self, seed: int, count: int) -> list[int]:
        """As each does."""
        return self._replicas[0].engine.derive_seeds(seed, count)

    def resident(self, version: int) -> bool:
        """Whether an available replica can answer from that version."""
        return any(replica.answers() and replica.engine.resident(version) for replica in self._replicas)

    def loads(self) -> tuple[int, int]:
        """Of all together."""
        loads = [replica.engine.loads() for replica in self._replicas]
        return sum(sampling for sampling, _ in loads), sum(waiting for _, waiting in loads)

    async def sample(self, work: SampleWork) -> AsyncGenerator[Candidate | Summary]:
        """Yield each candidate when it is finished, and the summary last; candidates that a replica did not finish come
        from the next, with the same seeds."""
        missing = list(range(len(work.seeds)))
        tries = Round(self._vllm.overload_seconds)
        while True:
            replica = await self._next(work, tries)
            places = list(missing)
            part = dataclasses.replace(work, seeds=[work.seeds[place] for place in places])
            try:
                async with contextlib.aclosing(replica.engine.sample(part)) as events:
                    async for event in events:
                        if isinstance(event, Summary):
                            yield event
                            return
                        place = places[event.index]
                        missing.remove(place)
                        tries.progressed()
                        yield dataclasses.replace(event, index=place)
            except (Unavailable, Overloaded) as error:
                tries.failed(replica, error)

    async def score(self, work: ScoreWork) -> TokenScores:
        """Score by the replica that samples with these images."""
        tries = Round(self._vllm.overload_seconds)
        while True:
            replica = await self._next(work, tries)
            try:
                return await replica.engine.score(work)
            except (Unavailable, Overloaded) as error:
                tries.failed(replica, error)

    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Load a policy at each replica that answers."""
        async with self._changes:
            version = manifest.version
            done = await self._at_each(
                lambda one: one.stage(directory, manifest), f"take policy {version}", lambda one: one.retire(version)
            )
            for replica in done:
                replica.held.add(version)
            self._staged[version] = directory, manifest
            return next(iter(done.values()))

    async def activate(self, version: int) -> None:
        """Make each hold the weights that a version needs."""
        async with self._changes:
            await self._at_each(lambda one: one.activate(version), f"switch to policy {version}")
            self._active = version

    async def retire(self, version: int) -> None:
        """Free a policy everywhere; an unavailable replica frees it when it is back."""
        async with self._changes:
            self._staged.pop(version, None)
            for replica in self._replicas:
                if version in replica.held and replica.engine.ready() is None:
                    await replica.engine.retire(version)
                    replica.held.discard(version)

    async def freeze(self) -> None:
        """Stop sampling where it is, at each."""
        await self._at_each(lambda one: one.freeze(), "freeze")

    async def thaw(self) -> None:
        """Go on."""
        await self._at_each(lambda one: one.thaw(), "go on")

    async def release(self) -> None:
        """Make each free its memory."""
        async with self._changes:
            self._resting = True
            await self._at_each(lambda one: one.release(), "rest")

    async def reload(self) -> None:
        """Make each restore it, and check that its weights came back."""
        async with self._changes:
            await self._at_each(lambda one: one.reload(), "restore its weights")
            self._resting = False

    async def _at_each(
        self,
        work: Callable[[VllmEngine], Awaitable[T]],
        what: str,
        undo: Callable[[VllmEngine], Awaitable[object]] | None = None,
    ) -> dict[Replica, T]:
        """Do something at each available replica; those that fail are left out if a quorum did it, otherwise it is
        undone.

        Raises:
            SightlineError: too few did it; the first one's error.
        """
        there = [replica for replica in self._replicas if replica.answers()]

        async def do(replica: Replica) -> T:
            return await work(replica.engine)

        results = await asyncio.gather(*map(do, there), return_exceptions=True)
        done: dict[Replica, T] = {}
        failures: list[tuple[Replica, BaseException]] = []
        for replica, result in zip(there, results, strict=True):
            if isinstance(result, BaseException):
                failures.append((replica, result))
            else:
                done[replica] = result
        if len(done) < self.quorum():
            if undo is not None:
                for replica in done:
                    with contextlib.suppress(SightlineError):
                        await undo(replica.engine)
            if failures:
                raise failures[0][1]
            raise self._unavailable(f"{len(done)} of {len(self._replicas)} replicas could {what}")
        for replica, error in failures:
            if not isinstance(error, SightlineError):
                raise error
            replica.leave_out(f"it did not {what}: {error}")
        return done

    async def _next(self, work: SampleWork | ScoreWork, tries: Round) -> Replica:
        """The replica to use, of those that have not failed for this request.

        Raises:
            Unavailable: no replica answered in time.
        """
        version = work.lease.bind()
        while True:
            able = [one for one in self._replicas if one.answers() and one.engine.resident(version)]
            for replica in in_order(able, work):
                if replica not in tries.asked:
                    return replica
            if tries.over():
                raise self._unavailable(f"no replica answers from policy {version}")
            tries.asked.clear()
            await asyncio.sleep(min(0.5, self._vllm.poll_seconds))

    def _unavailable(self, what: str) -> Unavailable:
        why = "; ".join(f"{one.engine.called}: {one.why()}" for one in self._replicas if not one.answers())
        return Unavailable(f"{what}{': ' if why else ''}{why}", reason="ENGINE_DOWN", retry_after=2.0)

    async def _tend(self, replica: Replica, start: asyncio.Task[str]) -> None:
        """Watch one replica as it comes and goes."""
        try:
            while True:
                try:
                    if start.done() and start.exception() is not None:
                        start = asyncio.create_task(replica.engine.start())
                    if start.done() and not self._resting:
                        await self._look_at(replica)
                except SightlineError as error:
                    replica.leave_out(str(error))
                    await asyncio.sleep(_AGAIN * self._vllm.poll_seconds)
                except Exception:
                    logger.exception("%s cannot be updated", replica.engine.called)
                await asyncio.sleep(self._vllm.poll_seconds)
        finally:
            start.cancel()

    async def _look_at(self, replica: Replica) -> None:
        down = replica.engine.ready()
        if down is not None:
            replica.leave_out(down)
        elif replica.engine.doubted:
            replica.leave_out("it was restarted, and must prove its policies again")
        if down is None and replica.out is not None:
            async with self._changes:
                await self._bring_up_to_date(replica)

    async def _bring_up_to_date(self, replica: Replica) -> None:
        """Give a replica what it lacks, and make it prove that it holds the same as the others.

        Raises:
            SightlineError: it refuses a policy, or shows other weights.
        """
        engine = replica.engine
        if self._vllm.sleep:  # it may have been left out while asleep
            await engine.reload()
        for version in replica.held - self._staged.keys():
            await engine.retire(version)
            replica.held.discard(version)
        for version in sorted(self._staged):
            if replica.failed and version in replica.held:  # it may hold anything under that name
                await engine.retire(version)
                replica.held.discard(version)
            if version not in replica.held:
                await engine.stage(*self._staged[version])
                replica.held.add(version)
        await engine.activate(self._active)
        engine.trust()
        proved = next((one for one in self._replicas if one is not replica and one.answers()), None)
        if proved is None and replica.failed:
            return  # it showed other weights, and there is no other replica to compare with
        if proved is not None and self._proof is not None:
            versions = [version for version in (0, *sorted(self._staged)) if proved.engine.resident(version)]
            try:
                await self._proof(engine, proved.engine, versions)
            except SightlineError:
                replica.failed = True
                raise
        replica.admit()
