"""Patience: how a call waits for a service that is unavailable or busy. There is one way to wait, in one layer.

gRPC's own retries end after five tries, about three seconds: less than a service takes to come back. These retries
continue as long as `Patience` and the call's deadline allow, wait as long as the service asks for (RetryInfo), and
never exceed the client's budget: a token bucket, from which each retry takes one token. If the bucket is empty, a retry
waits for a token; it does not fail.

    patience = Patience(seconds=600)              # what a caller decides
    tries = Tries(patience, timeout, Budget(patience))
    answer = tries.call(lambda seconds: stub.Score(request, timeout=seconds))

Code that reads a stream uses `Tries` directly: `left()` before a try, `progressed()` when something arrived,
`wait_after(error)` when the stream broke.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from sightline.errors import Cancelled, DeadlineExceeded, Overloaded, SightlineError, Unavailable, from_rpc_error

T = TypeVar("T")

TIMEOUT = 120.0
"""Default seconds for a call, retries included."""

# gRPC's messages for a broken connection when the status is not UNAVAILABLE.
_BROKEN = ("Stream removed", "RST_STREAM", "Connection reset")
_MOST_SECONDS = 365 * 86400.0  # gRPC takes a deadline that its clock cannot hold for one that has passed
_LEAST_SECONDS = 0.02  # with less, a try is not worth it


@dataclass(frozen=True)
class Patience:
    """How long, and how often, to retry while a service is unavailable or busy. The call's deadline ends it too."""

    seconds: float = 60.0
    """Seconds to keep retrying, counted from the first failure since the last answer or part of a stream."""
    tries: int | None = None
    """Maximum tries of a call, the first included; None means as many as time allows."""
    try_seconds: float | None = None
    """Maximum seconds of one try; a longer one is cancelled and retried. None: a try may take all remaining time."""
    first_delay: float = 0.1
    """Seconds before the second try; doubles with each try. If the service asks for a longer wait, that applies. Each
    wait is jittered; a wait that the service asked for only upwards."""
    max_delay: float = 5.0
    """Maximum wait in seconds, unless the service asks for more."""
    per_second: float = 20.0
    """Retries per second of the whole client, on average."""
    burst: int = 64
    """Retries that the whole client may make at once."""


ONCE = Patience(tries=1)
"""Never retry."""


def is_worth_a_retry(error: SightlineError) -> bool:
    """Whether another try may help: the service is unavailable or busy, or the connection broke."""
    if isinstance(error, Overloaded):
        return error.retry_after is not None
    if isinstance(error, DeadlineExceeded):
        return error.reason == "BACKEND_TIMEOUT"  # Triton timed out, not the caller
    return isinstance(error, Unavailable | Cancelled) or any(sign in error.message for sign in _BROKEN)


class Budget:
    """Shared by the calls of one client: its token bucket, and whether it is closed. Thread-safe."""

    def __init__(self, patience: Patience) -> None:
        self._most, self._rate = float(patience.burst), patience.per_second
        self._tokens, self._filled = self._most, time.monotonic()
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def take(self) -> float:
        """Take a token; returns the seconds until it is available."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate) - 1
            self._filled = now
            return max(0.0, -self._tokens / self._rate)

    def give_back(self) -> None:
        """Give back an unused token."""
        with self._lock:
            self._tokens += 1


class Tries:
    """One call with all its tries.

    Args:
        patience: how long and how often.
        timeout: seconds for all tries together; infinite if only `patience` should end them.
        budget: the client's; None makes a new one.
    """

    def __init__(self, patience: Patience, timeout: float = math.inf, budget: Budget | None = None) -> None:
        self._patience, self._budget = patience, budget or Budget(patience)
        self._began = time.monotonic()
        self._deadline = self._began + timeout
        self._failing: float | None = None  # since when
        self._failures = 0  # since the last answer
        self._cut = False  # whether the current try has less time than the call
        self._error: SightlineError | None = None
        self.count = 0

    def left(self) -> float:
        """Seconds that the next try may take."""
        left, most = max(self._deadline - time.monotonic(), 0.001), self._patience.try_seconds
        left = min(left, _MOST_SECONDS)
        self._cut = most is not None and most < left
        return min(left, most) if most is not None else left

    def progressed(self) -> None:
        """Something arrived: patience starts from 0."""
        self._failing, self._failures = None, 0

    def wait_after(self, cause: Exception) -> float:
        """Seconds until the next try.

        Args:
            cause: the error that ended the last try, gRPC's or ours.

        Raises:
            SightlineError: there is no next try: the last try's error; if the deadline ended that try, the error of the
                try before.
        """
        error, now = _typed(cause), time.monotonic()
        self.count, self._failures = self.count + 1, self._failures + 1
        timed_out = isinstance(error, DeadlineExceeded) and error.reason != "BACKEND_TIMEOUT"
        if timed_out and not self._cut and self._error is not None:
            error = self._error  # the deadline ended the last try: the error before it says more
        self._error = error
        if self._failing is None:
            self._failing = now
        patience = self._patience
        again = (timed_out and self._cut) or (not timed_out and is_worth_a_retry(error))
        if not again or self._budget.closed.is_set() or self.count == patience.tries:
            raise self._with_history(error)
        wait = min(patience.first_delay * 2.0 ** min(self._failures - 1, 30), patience.max_delay)
        wait *= random.uniform(0.5, 1.0)  # noqa: S311  jitter
        if error.retry_after is not None:
            wait = max(wait, error.retry_after * random.uniform(1.0, 1.25))  # noqa: S311
        wait = max(wait, self._budget.take())
        if now + wait > min(self._deadline - _LEAST_SECONDS, self._failing + patience.seconds):
            self._budget.give_back()
            raise self._with_history(error)
        return wait

    def call(self, attempt: Callable[[float], T], stopped: Callable[[], bool] = lambda: False) -> T:
        """The result of `attempt(seconds left)`.

        Args:
            attempt: one try; raises grpc.RpcError or SightlineError.
            stopped: called after each wait; if it returns True, there are no more tries.

        Raises:
            SightlineError: see `wait_after`.
        """
        while True:
            try:
                return attempt(self.left())
            except (grpc.RpcError, SightlineError) as error:
                failed = error
            if self._budget.closed.wait(self._wait(failed)) or stopped():
                raise self._last()

    async def acall(self, attempt: Callable[[float], Awaitable[T]]) -> T:
        """As `call`, for coroutines."""
        while True:
            try:
                return await attempt(self.left())
            except (grpc.RpcError, SightlineError) as error:
                failed = error
            await asyncio.sleep(self._wait(failed))
            if self._budget.closed.is_set():
                raise self._last()

    def _wait(self, failed: Exception) -> float:
        try:
            return self.wait_after(failed)
        except SightlineError as error:
            raise error from (None if error is failed else failed)

    def _last(self) -> SightlineError:
        return self._error or Cancelled("the client was closed")

    def _with_history(self, error: SightlineError) -> SightlineError:
        if self.count > 1:
            error.metadata["tries"] = str(self.count)
            error.add_note(f"after {self.count} tries in {time.monotonic() - self._began:.1f} s")
        return error


def _typed(error: Exception) -> SightlineError:
    if isinstance(error, SightlineError):
        return error
    return from_rpc_error(error) if isinstance(error, grpc.RpcError) else SightlineError(str(error))
