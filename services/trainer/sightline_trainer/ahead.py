"""Runs a stage of the next iteration in a thread while this iteration's update trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from sightline.errors import Cancelled


class Ahead:
    """A context manager: the work runs in parallel with the block; leaving the block waits for it and raises its error.
    If the block raises, the work is stopped.

    Args:
        work: receives a function that it calls several times a second and that raises Cancelled when it should stop;
            None: no work.
        halt: also called by that function.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None] | None, halt: Callable[[], None]) -> None:
        self._work = work
        self._halt = halt
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> Ahead:
        if self._work is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._work is None:
            return
        if kind is not None:
            self._over.set()
        try:
            self._thread.join()
        except BaseException:
            self._over.set()
            raise
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        assert self._work is not None
        try:
            self._work(self._check)
        except BaseException as error:  # raised again when the block is left
            self._error = error

    def _check(self) -> None:
        self._halt()
        if self._over.is_set():
            raise Cancelled("the update ended with an error")
