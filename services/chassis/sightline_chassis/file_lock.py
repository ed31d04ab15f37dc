"""File lock: lets one process at a time use a directory. The kernel releases it when its holder dies."""

from __future__ import annotations

import fcntl
from typing import IO


def locked(file: IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process has it.

    Args:
        shared: several may hold it so at a time, but none beside one that holds it alone.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
