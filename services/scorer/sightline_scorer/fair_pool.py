"""Threads that requests share in turns: one with a thousand pieces of work delays another by one piece only."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class FairPool:
    """Like an executor, but each piece of work has an owner, and the owners take turns.

    Args:
        threads: how many pieces are worked on at the same time.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[Hashable, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()

    def submit(self, owner: Hashable, work: Callable[[], T]) -> Future[T]:
        """Have it done in a thread when it is the owner's turn; cancelled before that, it never is.

        Raises:
            RuntimeError: the pool was shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(owner, deque()).append((future, work))
        self._threads.submit(self._one)
        return future

    def shutdown(self) -> None:
        """End the threads as their work ends; what waits is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = [future for queue in self._waiting.values() for future, _ in queue]
            self._waiting.clear()
        for future in left:
            future.cancel()

    def _one(self) -> None:
        with self._lock:
            if not self._waiting:
                return
            owner, queue = next(iter(self._waiting.items()))
            future, work = queue.popleft()
            del self._waiting[owner]
            if queue:
                self._waiting[owner] = queue  # at the end: the others come first
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
