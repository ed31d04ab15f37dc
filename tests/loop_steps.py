"""Loop steps: how long each step of an event loop keeps its thread busy, in CPU seconds, whatever else runs."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


class Steps:
    """Measures the steps of the loop of this thread inside the block."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._run = asyncio.events.Handle._run

    def __enter__(self) -> "Steps":
        run, seconds = self._run, self.seconds

        def timed(handle: Any) -> None:
            began = time.thread_time()
            try:
                run(handle)
            finally:
                seconds.append(time.thread_time() - began)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.events.Handle._run = self._run  # type: ignore[method-assign]


def measured(work: Coroutine[Any, Any, Any]) -> list[float]:
    """Run it in a loop of its own; CPU seconds of each step."""
    with Steps() as steps:
        asyncio.run(work)
    return steps.seconds
