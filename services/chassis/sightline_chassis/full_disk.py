"""Full disk: tells an error of a full disk, quota or file size limit from others."""

from __future__ import annotations

import errno
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAYINGS = ("No space left on device", "Disk quota exceeded", "File too large")


def disk_full(error: BaseException) -> bool:
    """Whether a full disk, quota or file size limit caused an error. Libraries wrap the system's error in their own
    exceptions or in texts."""
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
