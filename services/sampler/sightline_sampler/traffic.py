"""Who is being served, and the door: closed while an engine swaps weights, or while somebody asked for a pause."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

from sightline_chassis.errors import Unavailable

Holder = Literal["pause", "swap"]


class Traffic:
    """Requests under way. For the event loop's thread.

    Args:
        wait_seconds: longest wait at a closed door.
    """

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._holders: set[Holder] = set()
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()
        self._tasks: dict[asyncio.Task[object], bool] = {}  # whether it was broken off

    @property
    def closed(self) -> bool:
        """Whether requests have to wait."""
        return bool(self._holders)

    @contextlib.asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Waits until the door is open, and counts the request as under way inside the block.

        Raises:
            Unavailable: the door stayed closed for too long, or the request was broken off by a pause.
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
        self._tasks[task] = False
        self._idle.clear()
        try:
            yield
        except asyncio.CancelledError:
            if not self._tasks[task] or task.uncancel():  # the caller went away, too
                raise
            raise Unavailable(
                "broken off by a pause: ask again for what is missing", reason="PAUSED", retry_after=0.5
            ) from None
        finally:
            del self._tasks[task]
            if not self._tasks:
                self._idle.set()

    def close(self, holder: Holder) -> int:
        """Closes the door; the number of requests under way."""
        self._holders.add(holder)
        self._open.clear()
        return len(self._tasks)

    def open(self, holder: Holder) -> None:
        """Opens the door, if nobody else holds it."""
        self._holders.discard(holder)
        if not self._holders:
            self._open.set()

    async def idle(self) -> None:
        """Waits until nothing is under way."""
        await self._idle.wait()

    def abort(self) -> None:
        """Breaks off what is under way."""
        for task, broken in self._tasks.items():
            if not broken:
                self._tasks[task] = True
                task.cancel()
