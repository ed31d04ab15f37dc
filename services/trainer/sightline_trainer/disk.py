"""Disk: what a run does when no room is left.

A run keeps a small reserve, so that it can say why it ended even then: the reserve is given up, and `run.json` written
into its place.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sightline.errors import Overloaded

RESERVE_BYTES = 256 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAYINGS = ("No space left on device", "Disk quota exceeded", "File too large")


class DiskFull(Overloaded):
    """There is no room for the run's files. Nothing that was finished is lost.

    A caller gets it as `Overloaded`, by whose code it travels, with this reason."""

    reason = "DISK_FULL"


def disk_full(error: BaseException) -> bool:
    """Whether a full disk, quota or file size limit is behind an error. Libraries wrap what the system said, in
    exceptions of their own or in words."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL) or any(saying in str(each) for saying in _SAYINGS)
        for each in _behind(error, set())
    )


def _behind(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    yield from _behind(error.__cause__, seen)
    yield from _behind(error.__context__, seen)
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _behind(each, seen)


def out_of_space(directory: Path, error: BaseException) -> DiskFull:
    """The error that says what to do."""
    free = shutil.disk_usage(directory).free >> 20
    return DiskFull(
        f"no room for the files of {directory} ({free} MiB free; {type(error).__name__}: {error}): free some, then go "
        "on with the run; what was finished is kept"
    )


class Reserve:
    """Room that a run keeps for its last words."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".reserve"

    def keep(self) -> None:
        """Take the room.

        Raises:
            OSError: there is none.
        """
        with self.path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def give_up(self) -> None:
        """Leave the room to others."""
        self.path.unlink(missing_ok=True)
