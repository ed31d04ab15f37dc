"""What a run does when the disk is full.

A run keeps a small reserve file, so that it can still record why it ended: it deletes the reserve and writes `run.json`
in its space.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sightline.errors import Overloaded

RESERVE_BYTES = 256 << 10


class DiskFull(Overloaded):
    """There is no room for the run's files. Nothing that was finished is lost.

    A caller gets it as `Overloaded`, by whose code it travels, with this reason."""

    reason = "DISK_FULL"


def out_of_space(directory: Path, error: BaseException) -> DiskFull:
    """The error that says what to do."""
    free = shutil.disk_usage(directory).free >> 20
    return DiskFull(
        f"no space for the files of {directory} ({free} MiB free; {type(error).__name__}: {error}): free some, then "
        "resume the run; finished work is kept"
    )


class Reserve:
    """Space that a run keeps for its last record."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".reserve"

    def keep(self) -> None:
        """Reserve the space.

        Raises:
            OSError: the disk is full.
        """
        with self.path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def give_up(self) -> None:
        """Free the space."""
        self.path.unlink(missing_ok=True)
