"""A value made from files, rebuilt when they change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from sightline_chassis import metrics

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Watched(Generic[T]):
    """The value that `read` made from the files. Thread-safe; a check costs one `stat` for each file.

    While changed files cannot be used (half-written, say), the last good value stays, an error is logged once, and
    `sightline_reload_failing{what}` is 1.

    Args:
        what: a short name of the files for logs and metrics.
        paths: the files.
        read: makes the value; an error of the first call goes to the caller.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._what, self._paths, self._read = what, tuple(paths), read
        self._lock = threading.Lock()
        self._seen = self._fingerprint()
        self._value = read()
        metrics.RELOAD_FAILING.labels(what).set(0)

    def get(self) -> T:
        """The value from the current files."""
        with self._lock:
            seen = self._fingerprint()
            if seen != self._seen:
                self._seen = seen
                self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._read()
        except Exception as error:
            metrics.RELOAD_FAILING.labels(self._what).set(1)
            logger.error("the changed %s cannot be used; the previous content stays in force: %s", self._what, error)
            return
        metrics.RELOAD_FAILING.labels(self._what).set(0)
        logger.info("%s read again", self._what)

    def _fingerprint(self) -> tuple[object, ...]:
        return tuple(_stat(path) for path in self._paths)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()  # follows the links of a Secret's mount
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
