"""Waiting prompts: first come, first served per caller, and callers take turns.

So two trainers with one sampler get equal shares while both wait, however many requests one of them sent.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

from sightline_sampler.engines.local.rows import Request


class FairQueue:
    """A queue of requests by `work.asker`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The caller that was served longest ago comes first.
        self._askers: OrderedDict[str, deque[Request]] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._askers.values()))

    def __iter__(self) -> Iterator[Request]:
        with self._lock:
            return iter([request for queue in self._askers.values() for request in queue])

    def append(self, request: Request) -> None:
        """Put a request after those of the same caller."""
        with self._lock:
            self._askers.setdefault(request.work.asker, deque()).append(request)

    def next(self) -> Request | None:
        """The next request, without removing it."""
        with self._lock:
            return next(iter(self._askers.values()))[0] if self._askers else None

    def take(self) -> Request | None:
        """Take the next request; None if there is none."""
        with self._lock:
            if not self._askers:
                return None
            asker, queue = self._askers.popitem(last=False)
            request = queue.popleft()
            if queue:
                self._askers[asker] = queue  # now last
            return request

    def remove(self, request: Request) -> None:
        """Take one out."""
        with self._lock:
            queue = self._askers[request.work.asker]
            queue.remove(request)
            if not queue:
                del self._askers[request.work.asker]

    def clear(self) -> None:
        """Drop them all."""
        with self._lock:
            self._askers.clear()
