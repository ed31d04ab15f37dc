"""Running requests, and the door: closed while an engine swaps weights or during a pause."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Literal, TypeVar

from sightline.errors import Unavailable

Holder = Literal["pause", "swap"]
T = TypeVar("T")


class Visit:
    """A running request; it can be interrupted only while it waits for its engine."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._waiting = self._broken = False

    async def wait(self, result: Awaitable[T]) -> T:
        """The engine's result.

        Raises:
            Unavailable: a pause interrupted the request.
        """
        try:
            if self._broken:
                if asyncio.iscoroutine(result):
                    result.close()
                raise asyncio.CancelledError
            self._waiting = True
            return await result
        except asyncio.CancelledError:
            if not self._broken or (self._task.cancelling() and self._task.uncancel()):  # the caller left, too
                raise
            raise Unavailable(
                "interrupted by a pause: request the missing candidates again", reason="PAUSED", retry_after=0.5
            ) from None
        finally:
            self._waiting = False

    def break_off(self) -> None:
        """End it with Unavailable, at once if it is waiting, otherwise when it would wait."""
        if not self._broken:
            self._broken = True
            if self._waiting:
                self._task.cancel()


class Traffic:
    """Running requests. For the event loop's thread.

    Args:
        wait_seconds: maximum wait at a closed door.
    """

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._holders: set[Holder] = set()
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()
        self._visits: set[Visit] = set()

    @property
    def closed(self) -> bool:
        """Whether requests have to wait."""
        return bool(self._holders)

    @contextlib.asynccontextmanager
    async def passage(self) -> AsyncIterator[Visit]:
        """Wait until the door is open, and count the request as running inside the block.

        Raises:
            Unavailable: the door stayed closed for too long.
        """
        if self._holders:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    while self._holders:
                        await self._open.wait()
            except TimeoutError:
                raise Unavailable(
                    "the sampler is paused: try again after Resume", reason="PAUSED", retry_after=1.0
                ) from None
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("outside of a task")
        visit = Visit(task)
        self._visits.add(visit)
        self._idle.clear()
        try:
            yield visit
        finally:
            self._visits.discard(visit)
            if not self._visits:
                self._idle.set()

    def close(self, holder: Holder) -> int:
        """Close the door; returns the number of running requests."""
        self._holders.add(holder)
        self._open.clear()
        return len(self._visits)

    def open(self, holder: Holder) -> None:
        """Open the door, unless another holder keeps it closed."""
        self._holders.discard(holder)
        if not self._holders:
            self._open.set()

    async def idle(self) -> None:
        """Wait until nothing is running."""
        await self._idle.wait()

    def abort(self) -> None:
        """Interrupt the running requests."""
        for visit in self._visits:
            visit.break_off()
