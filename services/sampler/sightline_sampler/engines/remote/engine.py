"""The common part of engines behind HTTP: fetches candidates concurrently, survives failures, resamples placeholders.

A candidate is retried alone, with its seed; candidates that arrived are not requested again. Between two tries the
engine is checked: one that came back with other weights is not used.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

from sightline.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    Overloaded,
    PreconditionFailed,
    SightlineError,
    Unavailable,
)
from sightline.patience import Patience, Tries
from sightline.sampler.manifest import model_digest
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import AdapterPlace, Candidate, Summary
from sightline_chassis import metrics as chassis_metrics
from sightline_chassis.images import plain_file

from sightline_sampler import metrics
from sightline_sampler.engine_settings import EngineSettings, HttpEngineSettings
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import EncodedImage, Engine, SampleWork
from sightline_sampler.engines.remote.backend import Backend, Failure
from sightline_sampler.engines.remote.chattext import ChatText
from sightline_sampler.engines.remote.request_limit import RequestLimit
from sightline_sampler.engines.tensorfiles import adapter_place
from sightline_sampler.settings import SamplerLimits

logger = logging.getLogger(__name__)

Draw = Callable[[Sequence[int], Sequence[int]], AsyncGenerator[Candidate]]
"""Fetches candidates by their indices and seeds, and yields each when it is finished."""

_REDRAWS = 8
_LONGEST_PAUSE = 2.0  # seconds between two checks of an engine


class RemoteEngine(Engine):
    """An engine behind HTTP.

    Args:
        settings: the base model's directory, and the engine's section.
        section: that section.
        limits: limits of images and candidates.
        called: name in messages and metrics, if there are several; otherwise its kind.
    """

    def __init__(
        self, settings: EngineSettings, section: HttpEngineSettings, limits: SamplerLimits, called: str = ""
    ) -> None:
        self.called = called or self.name
        self._model = Path(settings.model).resolve()
        self._chat_template, self._section, self._limits = settings.chat_template, section, limits
        self._backend = Backend(self.name, section, called=self.called)
        self.slots = RequestLimit(section.max_concurrent)
        self._sampling = self._waiting = 0
        self._down: str | None = "it has not been asked yet"
        self._left_out = False
        self._text: ChatText | None = None
        self.place: AdapterPlace | None = None
        self._poller: asyncio.Task[None] | None = None

    @abc.abstractmethod
    async def look(self) -> str | None:
        """Ask what the engine serves.

        Returns:
            Why it cannot be used now; None if it can.

        Raises:
            Failure: it does not answer.
        """

    @property
    def text(self) -> ChatText:
        """The base model's template and tokenizer."""
        if self._text is None:
            raise Unavailable("the sampler has not started yet", retry_after=1.0)
        return self._text

    async def start(self) -> str:
        """Read the base model's directory, and wait for the engine.

        Raises:
            Unavailable: the engine does not start.
        """
        self._text = await asyncio.to_thread(ChatText, self._model, self._chat_template)
        digest = await asyncio.to_thread(model_digest, self._model)
        self.place = await asyncio.to_thread(adapter_place, self._model)
        await self.until_up(self._section.swap_seconds)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        return digest

    async def stop(self) -> None:
        """Close all connections."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])
        await self._backend.close()

    def ready(self) -> str | None:
        """None if the engine answered last time and serves the active policy."""
        return None if self._down is None else f"{self.called}: {self._down}"

    def show(self, *, left_out: bool) -> None:
        """Export in the metrics whether it is used, if there are several."""
        self._left_out = left_out
        chassis_metrics.BACKEND_UP.labels(self.called).set(self._down is None and not left_out)

    def loads(self) -> tuple[int, int]:
        """Running candidates, and those that wait for a connection."""
        return self._sampling, self._waiting

    def seen_at(self, directory: Path) -> str:
        """A policy's directory as the engine sees it."""
        at = self._section.policies_at
        return str(directory if at is None else at / directory.name)

    async def image_url(self, image: EncodedImage) -> str:
        """The image as a data URL that the engine reads as we do; it is decoded once to make sure.

        Raises:
            InvalidInput: it is not an image, or one over the limits.
        """
        content, media_type = await asyncio.to_thread(plain_file, image.content, self._limits)
        return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

    async def until_up(self, seconds: float) -> None:
        """Wait until the engine answers.

        Raises:
            Unavailable: it does not within that time.
        """
        try:
            await Tries(Patience(seconds=seconds, max_delay=_LONGEST_PAUSE)).acall(lambda _: self._look())
        except Failure as failure:
            raise Unavailable(f"{failure}", reason="ENGINE_DOWN", retry_after=2.0) from failure

    async def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait until a condition holds, for as long as a swap may take.

        Raises:
            PreconditionFailed: it does not.
        """
        deadline = time.monotonic() + self._section.swap_seconds
        while True:
            with contextlib.suppress(Failure):
                await self._look()
                if condition():
                    return
            if time.monotonic() > deadline:
                raise PreconditionFailed(
                    f"{otherwise} within {self._section.swap_seconds:.0f} s"
                    + (f": {self._down}" if self._down else ""),
                    reason="ENGINE_DID_NOT_CHANGE",
                )
            await asyncio.sleep(min(1.0, self._section.poll_seconds))

    async def fetch(self, work: SampleWork, draw: Draw, version: int) -> AsyncGenerator[Candidate]:
        """All candidates of a request as they arrive; failures are retried. Greedy candidates are equal, so only one is
        requested.

        Args:
            work: the request.
            draw: fetches some; called with the indices for one connection, and again after a failure.
            version: the version that they must come from.

        Raises:
            SightlineError: candidates that failed; those that arrived were yielded.
        """
        greedy = work.params.temperature == 0
        asked = dataclasses.replace(work, seeds=work.seeds[:1]) if greedy else work
        async with contextlib.aclosing(self._fetch(asked, draw, version)) as candidates:
            async for candidate in candidates:
                for one in copies(candidate, work.seeds) if greedy else [candidate]:
                    yield one

    async def _fetch(self, work: SampleWork, draw: Draw, version: int) -> AsyncGenerator[Candidate]:
        queue: asyncio.Queue[Candidate | BaseException | None] = asyncio.Queue()
        batches = self.batches(work)

        async def run(indices: Sequence[int]) -> None:
            try:
                async for candidate in self._persist(indices, work, draw, version):
                    queue.put_nowait(candidate)
                queue.put_nowait(None)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                queue.put_nowait(error)

        tasks = [asyncio.create_task(run(indices)) for indices in batches]
        failure: BaseException | None = None
        try:
            left = len(tasks)
            while left:
                event = await self._next(queue, work.deadline)
                if isinstance(event, Candidate):
                    yield event
                else:
                    left -= 1
                    failure = failure or event
                    if failure is not None and not _may_wait(failure):
                        break
            if failure is not None:
                raise failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def batches(self, work: SampleWork) -> list[list[int]]:
        """Groups of indices, one for each request."""
        return [[index] for index in range(len(work.seeds))]

    def summary(self, version: int, rendered: str, prompt_tokens: int) -> Summary:
        """The end of a request."""
        return Summary(prompt_tokens, rendered, version, self.capabilities().engine)

    async def _persist(
        self, indices: Sequence[int], work: SampleWork, draw: Draw, version: int
    ) -> AsyncIterator[Candidate]:
        missing, wanted = list(indices), {index: work.seeds[index] for index in indices}
        broken = redrawn = 0
        tries = Tries(Patience(seconds=self._section.overload_seconds, max_delay=_LONGEST_PAUSE))
        while missing:
            self.require(version)
            try:
                drawn = draw(list(missing), [wanted[index] for index in missing])
                async with self._turn(len(missing)), contextlib.aclosing(drawn):
                    async for candidate in drawn:
                        if self._holds_placeholder(candidate):
                            redrawn += 1
                            if redrawn > _REDRAWS:
                                raise InternalError(
                                    f"{self.called} repeatedly samples image placeholders", reason="ENGINE_FAILED"
                                )
                            metrics.DROPPED.inc()
                            wanted[candidate.index] = seeds.derive(wanted[candidate.index], 1)[0]
                            continue
                        missing.remove(candidate.index)
                        tries.progressed()
                        yield candidate
            except Failure as failure:
                chassis_metrics.BACKEND_RETRIES.labels(self.called).inc()
                if failure.kind == "broken":
                    broken += 1
                    tries.progressed()  # it accepted the request; another limit bounds how often that may fail
                    if broken >= self._section.tries:
                        raise Unavailable(
                            f"{self.called} failed {broken} times: {failure}", reason="ENGINE_FAILED", retry_after=2.0
                        ) from failure
                try:
                    pause = tries.wait_after(failure)
                except Failure:
                    raise self.unavailable(failure) from failure
                await asyncio.sleep(pause)
                if failure.kind != "busy":
                    await self.until_up(self._section.overload_seconds)

    @contextlib.asynccontextmanager
    async def _turn(self, count: int) -> AsyncIterator[None]:
        self._waiting += 1
        waiting = True
        try:
            async with self.slots.taken(self.weight(count)):
                self._waiting -= 1
                waiting = False
                self._sampling += count
                try:
                    yield
                finally:
                    self._sampling -= count
        finally:
            self._waiting -= waiting

    def weight(self, count: int) -> int:
        """How much a request for this many candidates counts towards the engine's limit."""
        return 1

    def unavailable(self, failure: Failure) -> SightlineError:
        """The typed error for a failure that is not retried here."""
        if failure.kind == "busy":
            return Overloaded(f"{self.called}: {failure}", reason="ENGINE_BUSY", retry_after=2.0)
        return Unavailable(f"{self.called}: {failure}", reason="ENGINE_DOWN", retry_after=2.0)

    def require(self, version: int) -> None:
        """Refuse to sample from an engine that does not hold that version.

        Raises:
            Unavailable: it does not.
        """
        if not self.resident(version):
            metrics.STALE.inc()
            raise Unavailable(
                f"{self.called} does not hold policy {version}" + (f": {self._down}" if self._down else ""),
                reason="ENGINE_HOLDS_ANOTHER_POLICY",
                retry_after=2.0,
            )

    def _holds_placeholder(self, candidate: Candidate) -> bool:
        return any(int(token) in self.text.placeholder_ids for token in candidate.token_ids)

    async def _look(self) -> None:
        try:
            self._note(await self.look())
        except SightlineError as error:
            self._note(str(error))
            raise

    def _note(self, down: str | None) -> None:
        if down != self._down:
            logger.log(logging.INFO if down is None else logging.WARNING, "%s: %s", self.called, down or "answers")
        self._down = down
        chassis_metrics.BACKEND_UP.labels(self.called).set(down is None and not self._left_out)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._section.poll_seconds)
            try:
                await self._look()
            except SightlineError:
                continue  # noted
            except Exception:
                logger.exception("checking %s failed", self.called)

    @staticmethod
    async def _next(
        queue: asyncio.Queue[Candidate | BaseException | None], deadline: float | None
    ) -> Candidate | BaseException | None:
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return await queue.get()
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed before all candidates were finished: allow more time, or ask for fewer ones"
            ) from None


def copies(candidate: Candidate, seeds_of_all: Sequence[int]) -> list[Candidate]:
    """Copy one greedy candidate for each seed, since the engine would always give the same."""
    return [dataclasses.replace(candidate, index=index, seed=seed) for index, seed in enumerate(seeds_of_all)]


def too_long(why: str, *, window: object, prompt: str | None) -> InvalidInput:
    """The error for a request whose prompt and tokens do not fit; the prompt is never cut."""
    facts = {"window": str(window or ""), "prompt_tokens": prompt or ""}
    return InvalidInput(
        f"prompt (image included) and max_tokens do not fit: {why}", reason="PROMPT_TOO_LONG", metadata=facts
    )


def left_of(error: InvalidInput, params: SamplingParams) -> int:
    """Number of tokens that fit after a prompt which the engine has counted, if the caller set none; otherwise raises
    the error again."""
    window, prompt = error.metadata.get("window"), error.metadata.get("prompt_tokens")
    if params.max_tokens is not None or not window or not prompt or int(window) <= int(prompt):
        raise error
    return int(window) - int(prompt)


def _may_wait(failure: BaseException) -> bool:
    """Whether to wait for the other candidates of the request, so that they need not be requested again."""
    return isinstance(failure, Unavailable | Overloaded)
