"""Admission: how many calls run at a time and how many may wait; the rest is refused at once, and told when to return.

gRPC's own `maximum_concurrent_rpcs` refuses health checks too, so that a busy pod would be restarted: not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from sightline_chassis import metrics
from sightline_chassis.errors import Overloaded
from sightline_chassis.sections import AdmissionSettings


class Admission:
    """A bounded number of turns with a bounded queue before them, first come, first served."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.max_concurrent)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Holds one turn inside the block.

        Raises:
            Overloaded: the queue is full, or the wait was too long.
        """
        await self._enter()
        metrics.INFLIGHT.inc()
        try:
            yield
        finally:
            metrics.INFLIGHT.dec()
            self._turns.release()

    async def _enter(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()  # does not suspend: a turn is free and nobody waits
            metrics.QUEUE_WAIT.observe(0)
            return
        settings = self._settings
        if self._waiting >= settings.max_queue:
            raise self._refuse("queue_full", f"{settings.max_concurrent} calls run and {self._waiting} wait")
        start = time.monotonic()
        self._waiting += 1
        metrics.QUEUE_DEPTH.inc()
        try:
            async with asyncio.timeout(settings.max_wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise self._refuse("queue_timeout", f"no turn within {settings.max_wait_seconds:g} s") from None
        finally:
            self._waiting -= 1
            metrics.QUEUE_DEPTH.dec()
            metrics.QUEUE_WAIT.observe(time.monotonic() - start)

    def _refuse(self, reason: str, why: str) -> Overloaded:
        metrics.REJECTED.labels(reason).inc()
        after = self._settings.retry_after_seconds
        return Overloaded(
            f"the service is busy: {why}; try again in {after:g} s", reason=reason.upper(), retry_after=after
        )
