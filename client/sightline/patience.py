"""Retries of calls that give the same answer twice: within the caller's deadline, jittered, and within a budget.

gRPC's own retries end after five tries, about three seconds: less than a Triton takes to come back. These go on until
the deadline, wait as long as the service asks for (RetryInfo), and never ask a struggling service more often than the
budget allows: a token bucket of one client, from which each retry takes one. When it is empty a retry waits for its
token; it does not fail.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from sightline.errors import Cancelled, DeadlineExceeded, Overloaded, SightlineError, Unavailable, from_rpc_error

T = TypeVar("T")

# What gRPC says of a connection that broke, where it does not say UNAVAILABLE.
_BROKEN = ("Stream removed", "RST_STREAM", "Connection reset")
_LEAST_SECONDS = 0.02  # less is not worth a try


@dataclass(frozen=True)
class Retry:
    """How a client tries again. The deadline of the call is the only limit on the number of tries."""

    first_delay: float = 0.1
    """Seconds before the second try; doubles with each. Where the service says how long to wait, that counts if longer.
    Each wait is jittered, upwards for what the service asked."""
    max_delay: float = 5.0
    """Longest wait in seconds, where the service does not ask for more."""
    per_second: float = 20.0
    """Retries per second of the whole client, in the long run."""
    burst: int = 64
    """Retries of the whole client that may come at once."""
    enabled: bool = True
    """Whether to try again at all."""


NEVER = Retry(enabled=False)


def may_be_tried_again(error: SightlineError) -> bool:
    """Whether another try may help: the service is away, busy, or its connection broke."""
    if isinstance(error, Overloaded):
        return error.retry_after is not None
    if isinstance(error, DeadlineExceeded):
        return error.reason == "BACKEND_TIMEOUT"  # Triton's time ran out, not the caller's
    return isinstance(error, Unavailable | Cancelled) or any(sign in error.message for sign in _BROKEN)


class Retries:
    """Runs attempts. One per client; safe to share between threads."""

    def __init__(self, policy: Retry) -> None:
        self._policy = policy
        self._tokens = float(policy.burst)
        self._filled = time.monotonic()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """No more tries; what waits for one gives up."""
        self._closed.set()

    def call(self, attempt: Callable[[float], T], timeout: float, stopped: Callable[[], bool] = lambda: False) -> T:
        """The result of `attempt(seconds left)`.

        Args:
            attempt: one try; raises grpc.RpcError.
            timeout: seconds for all tries together.
            stopped: asked before each wait; no more tries when true.

        Raises:
            SightlineError: what the last try met; of tries that ended by the deadline, what the one before met.
        """
        run = _Run(timeout)
        while True:
            try:
                return attempt(run.left())
            except grpc.RpcError as error:
                wait = self._wait(run, from_rpc_error(error), error)
            if stopped() or self._closed.wait(wait):
                raise run.error

    async def acall(self, attempt: Callable[[float], Awaitable[T]], timeout: float) -> T:  # noqa: ASYNC109
        """As `call`, for coroutines."""
        run = _Run(timeout)
        while True:
            try:
                return await attempt(run.left())
            except grpc.RpcError as error:
                wait = self._wait(run, from_rpc_error(error), error)
            await asyncio.sleep(wait)
            if self._closed.is_set():
                raise run.error

    def _wait(self, run: _Run, error: SightlineError, cause: grpc.RpcError) -> float:
        """Seconds until the next try. Raises where there is none."""
        run.tries += 1
        if run.tries > 1 and type(error) is DeadlineExceeded and error.reason != "BACKEND_TIMEOUT":
            error = run.error  # the deadline cut the last try short: what it was retried for says more
        run.error = error
        if not self._policy.enabled or self._closed.is_set() or not may_be_tried_again(error):
            raise _told(error, run) from cause
        policy = self._policy
        pause = min(policy.first_delay * 2.0 ** min(run.tries - 1, 30), policy.max_delay)
        wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter
        if error.retry_after is not None:
            wait = max(wait, error.retry_after * random.uniform(1.0, 1.25))  # noqa: S311
        wait = max(wait, self._token())
        if run.left() - wait < _LEAST_SECONDS:
            self._give_back()
            raise _told(error, run) from cause
        return wait

    def _token(self) -> float:
        """Takes a token; seconds until it is there."""
        with self._lock:
            now = time.monotonic()
            policy = self._policy
            self._tokens = min(policy.burst, self._tokens + (now - self._filled) * policy.per_second) - 1
            self._filled = now
            return max(0.0, -self._tokens / policy.per_second)

    def _give_back(self) -> None:
        with self._lock:
            self._tokens += 1


class _Run:
    """One call with its tries."""

    error: SightlineError

    def __init__(self, timeout: float) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + timeout
        self.tries = 0

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.001)


def _told(error: SightlineError, run: _Run) -> SightlineError:
    if run.tries > 1:
        error.metadata["tries"] = str(run.tries)
        error.add_note(f"after {run.tries} tries in {time.monotonic() - run.began:.1f} s")
    return error
