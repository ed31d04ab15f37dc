"""Ahead: a stage of the next iteration in a thread, while the update of this one trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from sightline.errors import Cancelled


class Ahead:
    """A context manager: the work runs beside the block, and is done, or its error raised, when the block is left. A
    block that raises breaks the work off.

    Args:
        work: gets a function that it calls several times a second, which raises Cancelled when it is to stop; None
            is nothing to do.
        halt: asked by that function too.
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
        except BaseException as error:  # raised again where the block is left
            self._error = error

    def _check(self) -> None:
        self._halt()
        if self._over.is_set():
            raise Cancelled("the update ended with an error")
