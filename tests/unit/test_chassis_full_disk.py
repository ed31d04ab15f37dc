"""Errors of a full disk, however a library words them."""

import errno

import pytest
from sightline_chassis.full_disk import disk_full


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("safetensors: I/O error: No space left on device (os error 28)"),
        ExceptionGroup("two", [ValueError(), OSError(errno.EDQUOT, "quota")]),
    ],
)
def test_a_full_disk_is_known_however_it_is_said(error: Exception) -> None:
    assert disk_full(error)
    with pytest.raises(KeyError) as wrapped:
        raise KeyError("wrapped") from error
    assert disk_full(wrapped.value)
    assert not disk_full(OSError(errno.EACCES, "Permission denied"))
