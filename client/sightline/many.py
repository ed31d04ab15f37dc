"""Many items through one client: read lazily, a bounded number in flight, outcomes in order. Light."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

from sightline.errors import InvalidInput, SightlineError

T = TypeVar("T")
R = TypeVar("R")
Outcome = TypeVar("Outcome")

IN_FLIGHT = 32
"""Default of items read and not yet yielded."""

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of finished items and, if known, of all items."""


def row_of(row: object, form: str) -> list[Any]:
    """The two or three parts of a row of `score_many` or `sample_many`.

    Raises:
        InvalidInput: ROW_UNUSABLE; it does not have the form `form`.
    """
    if not isinstance(row, tuple | list) or not 2 <= len(row) <= 3:
        what = f"a {type(row).__name__}" + (f" of {len(row)}" if isinstance(row, tuple | list) else "")
        raise InvalidInput(f"a row is {form}, not {what}", reason="ROW_UNUSABLE")
    return list(row)


class Live:
    """The running calls of one `in_order`, which end with it."""

    def __init__(self) -> None:
        self._cancels: set[Callable[[], object]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @contextmanager
    def holding(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Wraps a call: `cancel` is called if the end comes before the call's end, or has already come."""
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
        """Whether the iteration has ended."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Cancel all."""
        self._stop.set()
        with self._lock:
            cancels = list(self._cancels)
        for cancel in cancels:
            cancel()


class Sendable(Generic[T, R]):
    """The items of a call that can be sent, made when they are read; an item that cannot be made fails alone.

    Args:
        items: the caller's items.
        make: makes what is sent for one item; raises SightlineError.
    """

    def __init__(self, items: Iterable[T], make: Callable[[T], R]) -> None:
        self._items, self._make = items, make
        self._errors: list[SightlineError | None] = []

    def __iter__(self) -> Iterator[R]:
        for item in self._items:
            try:
                made = self._make(item)
            except SightlineError as error:
                self._errors.append(error)
                continue
            self._errors.append(None)
            yield made

    def first(self) -> SightlineError | None:
        """The first error."""
        return next((error for error in self._errors if error is not None), None)

    def merged(self, outcomes: Iterable[Outcome]) -> tuple[Outcome | SightlineError, ...]:
        """The outcomes of the items that were sent, with the errors of the others in their places."""
        sent = iter(outcomes)
        return tuple(next(sent) if error is None else error for error in self._errors)


def count_of(items: object) -> int | None:
    """The number of items, if known."""
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
    """The outcomes of `run`, in the order of `items`. Leaving the iteration stops running calls.

    Args:
        items: read by the iterating thread, when there is room.
        run: runs one item, in its own thread; `Live` holds the calls to cancel. If it raises, the whole call ends.
        total: number of items, if known.
        max_in_flight: items read and not yet yielded; at least 1.
        progress: called as progress(items yielded, total) before each is yielded.
        group: number of items that are read together, at most `max_in_flight`.
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
