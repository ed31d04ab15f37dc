"""The limit of concurrent requests to an engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class RequestLimit:
    """A semaphore from which users take several permits at once; first come, first served. `limit` may change at any
    time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Hold `count` permits inside the block (all permits, if there are fewer)."""
        if self._waiting or not self._fits(count):
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((count, future))
            try:
                await future
            except asyncio.CancelledError:
                # Also without a turn, since those after it may fit.
                self._give(0 if future.cancelled() else count)
                raise
        else:
            self._taken += count
        try:
            yield
        finally:
            self._give(count)

    def _fits(self, count: int) -> bool:
        return not self._taken or self._taken + count <= self.limit

    def _give(self, count: int) -> None:
        self._taken -= count
        while self._waiting:
            wanted, future = self._waiting[0]
            if future.done():  # cancelled while it waited
                self._waiting.popleft()
            elif self._fits(wanted):
                self._waiting.popleft()
                self._taken += wanted
                future.set_result(None)
            else:
                break
