"""Loop steps: how long each step of an event loop keeps its thread busy, in CPU seconds, whatever else runs."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self


class Steps:
    """Measure the steps of event loops inside the block.

    Args:
        ours: whether the loop of the thread that asks is measured.
    """

    def __init__(self, ours: Callable[[], bool] = lambda: True) -> None:
        self.seconds: list[float] = []
        self._ours = ours
        self._run = asyncio.events.Handle._run

    def __enter__(self) -> Self:
        run, seconds, ours = self._run, self.seconds, self._ours

        def timed(handle: Any) -> None:
            began = time.thread_time()
            try:
                run(handle)
            finally:
                if ours():
                    seconds.append(time.thread_time() - began)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.events.Handle._run = self._run  # type: ignore[method-assign]


def measured(work: Coroutine[Any, Any, Any]) -> list[float]:
    """Run it in its own event loop; return the CPU seconds of each step."""
    with Steps() as steps:
        asyncio.run(work)
    return steps.seconds
