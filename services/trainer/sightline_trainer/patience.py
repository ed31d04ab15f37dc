"""Patience: outlive a service that restarts."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sightline.errors import DeadlineExceeded, Overloaded, Unavailable

T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]], *, limit: float = 600.0) -> T:
    """Await `call()` again while its service is away, full or too slow, for up to `limit` seconds.

    Waits as long as the service asks for, and at least a jittered, doubling moment. Safe for calls that give the same
    answer twice, as all of the loop's are (candidates carry their seeds).

    Raises:
        SightlineError: what the last try raised.
    """
    deadline, pause = time.monotonic() + limit, 0.25
    while True:
        try:
            return await call()
        except (Unavailable, Overloaded, DeadlineExceeded) as error:
            wait = max(error.retry_after or 0.0, pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            if time.monotonic() + wait > deadline:
                raise
            await asyncio.sleep(wait)
            pause = min(2 * pause, 5.0)
