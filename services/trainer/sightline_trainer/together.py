"""Lets prompts that were answered one by one go on in groups, so that a service batches what they ask of it.

A prompt whose picture reaches the scorer alone goes through the tower alone, which costs several times its share of a
full batch. The sampler answers a prompt every few milliseconds, and nobody waits for a single one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Together:
    """Holds callers back until enough of them wait, until no other is on its way, or for `seconds` at most.

    Args:
        size: callers of a group: a full batch of pictures in the scorer's defaults.
        seconds: how long the first of a group waits.
    """

    def __init__(self, size: int = 16, seconds: float = 0.25) -> None:
        self.size = size
        self.seconds = seconds
        self._coming = 0
        self._waiting = 0
        self._group = asyncio.Event()

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        """A context in which a caller is expected soon. If the last one leaves it, all who wait go on."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            if not self._coming:
                self._go()

    async def __call__(self) -> None:
        """Wait for the others of a group."""
        self._waiting += 1
        if self._waiting >= self.size or not self._coming:
            self._go()
            return
        group = self._group
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                await group.wait()
        if group is self._group:
            self._go()

    def _go(self) -> None:
        self._group.set()
        self._group, self._waiting = asyncio.Event(), 0
