"""Many items through one client: read as they are needed, so many in flight, outcomes in order. Light."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 32
"""Items read and not yet yielded, where the caller says nothing."""

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of items done, and of all items where that is known."""


class Live:
    """The calls that run for one `in_order`, so that its end ends them."""

    def __init__(self) -> None:
        self._cancels: set[Callable[[], object]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @contextmanager
    def holding(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Around a call: `cancel` is called where the end comes before the call's, or has come."""
        with self._lock:
            self._cancels.add(cancel)
        if self._stop.is_set():
            cancel()
        try:
            yield
        finally:
            with self._lock:
                self._cancels.discard(cancel)

    def stopped(self) -> bool:
        """Whether nobody waits any more."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Cancel all."""
        self._stop.set()
        with self._lock:
            cancels = list(self._cancels)
        for cancel in cancels:
            cancel()


def count_of(items: object) -> int | None:
    """How many there are, where that is known."""
    return len(items) if hasattr(items, "__len__") else None


def in_order(
    items: Iterable[T],
    run: Callable[[T, Live], R],
    *,
    total: int | None,
    max_in_flight: int,
    progress: Progress | None,
    group: int = 1,
    prepare: Callable[[list[T]], object] = lambda _: None,
) -> Iterator[R]:
    """The outcomes of `run`, in the order of `items`. Whoever leaves the iteration stops what runs.

    Args:
        items: read by the thread that iterates, as there is room.
        run: one item, in a thread of its own; told which calls to give up by `Live`. What it raises ends the whole.
        total: number of items, where that is known.
        max_in_flight: items read and not yet yielded; at least 1.
        progress: called as progress(items yielded, total) before each is yielded.
        group: items read together, not more than `max_in_flight`.
        prepare: called with each group before its items run.
    """
    live, done, most = Live(), 0, max(1, max_in_flight)
    source, more = iter(items), True
    waiting: deque[Future[R]] = deque()
    threads = ThreadPoolExecutor(most, thread_name_prefix="in_order")
    try:
        while waiting or more:
            if more and len(waiting) <= most - group:
                some = list(islice(source, group))
                more = bool(some)
                prepare(some)
                waiting.extend(threads.submit(run, item, live) for item in some)
                continue
            outcome = waiting.popleft().result()
            done += 1
            if progress is not None:
                progress(done, total)
            yield outcome
    finally:
        live.stop()
        threads.shutdown(wait=False, cancel_futures=True)


async def _nothing(_: object) -> None:
    pass


async def in_order_async(
    items: Iterable[T],
    run: Callable[[T], Coroutine[Any, Any, R]],
    *,
    total: int | None,
    max_in_flight: int,
    progress: Progress | None,
    group: int = 1,
    prepare: Callable[[list[T]], Awaitable[object]] = _nothing,
) -> AsyncIterator[R]:
    """As `in_order`, for asyncio: `items` is read in a thread, `run` is a task, cancelled at the end."""
    done, most = 0, max(1, max_in_flight)
    source, more = iter(items), True
    waiting: deque[asyncio.Task[R]] = deque()
    try:
        while waiting or more:
            if more and len(waiting) <= most - group:
                some = await asyncio.to_thread(lambda: list(islice(source, group)))
                more = bool(some)
                await prepare(some)
                waiting.extend(asyncio.create_task(run(item)) for item in some)
                continue
            outcome = await waiting.popleft()
            done += 1
            if progress is not None:
                progress(done, total)
            yield outcome
    finally:
        for task in waiting:
            task.cancel()
