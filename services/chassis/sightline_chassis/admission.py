"""Admission: bounds how many calls run and how many wait; the rest are refused at once, with a time to retry after.

Teams are served fairly: a free turn goes to the waiting team with the fewest running calls. If the queue is full, a
call from a team with fewer waiting calls replaces the newest call of the team with the most. So a team that sends ten
times too much only fills its own share. Within a team, calls are served in order.

gRPC's own `maximum_concurrent_rpcs` is not used: it refuses health checks too, so that a busy pod would be restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator

from sightline.errors import Overloaded

from sightline_chassis import metrics
from sightline_chassis.sections import AdmissionSettings


class Admission:
    """A bounded number of turns with a bounded queue before them. For one event loop."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._free = settings.max_concurrent
        self._running: Counter[str] = Counter()
        # Each team's waiting calls, oldest first; the team that was served longest ago comes first.
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, team: str = "") -> AsyncIterator[None]:
        """Hold one turn inside the block.

        Raises:
            Overloaded: the queue is full, or the wait was too long.
        """
        await self._enter(team)
        metrics.INFLIGHT.inc()
        try:
            yield
        finally:
            metrics.INFLIGHT.dec()
            self._leave(team)

    async def _enter(self, team: str) -> None:
        if self._free:  # then the queue is empty
            self._take(team)
            metrics.QUEUE_WAIT.observe(0)
            return
        self._make_room(team)
        settings, start = self._settings, time.monotonic()
        place = asyncio.get_running_loop().create_future()
        self._queues.setdefault(team, deque()).append(place)
        metrics.QUEUE_DEPTH.inc()
        try:
            async with asyncio.timeout(settings.max_wait_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._leave(team)  # the turn came at the same moment
            if isinstance(error, TimeoutError):
                raise self._refusal("queue_timeout", f"no turn within {settings.max_wait_seconds:g} s") from None
            raise
        finally:
            self._forget(team, place)
            metrics.QUEUE_DEPTH.dec()
            metrics.QUEUE_WAIT.observe(time.monotonic() - start)

    def _take(self, team: str) -> None:
        self._free -= 1
        self._running[team] += 1

    def _leave(self, team: str) -> None:
        self._free += 1
        self._running[team] -= 1
        if not self._running[team]:
            del self._running[team]
        while self._free and self._queues:
            following = min(self._queues, key=lambda name: self._running[name])  # of equals, the first
            queue = self._queues.pop(following)
            place = queue.popleft()
            if queue:
                self._queues[following] = queue  # now last
            if not place.done():
                self._take(following)
                place.set_result(None)

    def _make_room(self, team: str) -> None:
        """Make sure that the queue has a place for the team; raises Overloaded if it has none."""
        if sum(map(len, self._queues.values())) < self._settings.max_queue:
            return
        refusal = self._refusal("queue_full", f"{self._settings.max_concurrent} calls run and the queue is full")
        greedy = max(self._queues, key=lambda name: len(self._queues[name]), default=team)
        if len(self._queues.get(greedy, ())) <= len(self._queues.get(team, ())) + 1:
            raise refusal
        place = self._queues[greedy].pop()
        if not place.done():
            place.set_exception(refusal)

    def _forget(self, team: str, place: asyncio.Future[None]) -> None:
        queue = self._queues.get(team)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(place)
            if not queue:
                del self._queues[team]

    def _refusal(self, reason: str, why: str) -> Overloaded:
        metrics.REJECTED.labels(reason).inc()
        after = self._settings.retry_after_seconds
        return Overloaded(
            f"the service is busy: {why}; try again in {after:g} s", reason=reason.upper(), retry_after=after
        )
