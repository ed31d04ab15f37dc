"""System shared memory between this service and a Triton on the same host: pixels are not copied over a socket.

A region is a file under /dev/shm that both map. It is unlinked as soon as Triton has mapped it, so that a killed
process leaves nothing behind.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

logger = logging.getLogger(__name__)
_DIRECTORY = Path("/dev/shm")  # noqa: S108
_numbers = itertools.count(1)


class Region:
    """Shared memory for a few batches of one tower at a time.

    Args:
        slots: number of concurrent batches.
        slot_bytes: bytes of the largest batch.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._free = list(range(slots))
        self.name = f"sightline_{os.getpid()}_region_{next(_numbers)}"
        self._path = _DIRECTORY / self.name
        handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # Allocate real blocks now: a /dev/shm that is too small (64 MiB in many containers) must not kill us later.
            os.posix_fallocate(handle, 0, slots * slot_bytes)
            self._memory = mmap.mmap(handle, slots * slot_bytes)
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(handle)
        self._bytes = np.frombuffer(self._memory, np.uint8)

    async def register(self, client: InferenceServerClient) -> None:
        """Let Triton map it. Raises InferenceServerException if it cannot."""
        size = len(self._memory)
        try:
            await client.register_system_shared_memory(self.name, f"/{self.name}", size, client_timeout=5)
        finally:
            self._path.unlink(missing_ok=True)

    def take(self) -> int | None:
        """A free slot, if there is one."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Free a slot after its batch."""
        self._free.append(slot)

    def fill(self, slot: int, entry: str, values: Sequence[npt.NDArray[np.uint8]]) -> InferInput:
        """Copy arrays of one shape into a slot; returns the input that refers to them."""
        size = values[0].nbytes
        offset = slot * self._slot_bytes
        for number, value in enumerate(values):
            start = offset + number * size
            self._bytes[start : start + size] = value.reshape(-1)
        tensor: InferInput = InferInput(entry, [len(values), *values[0].shape], "UINT8")
        tensor.set_shared_memory(self.name, size * len(values), offset=offset)
        return tensor


async def open_region(client: InferenceServerClient, slots: int, slot_bytes: int) -> Region | None:
    """A region that Triton has mapped; None, with one log line, if that is not possible."""
    try:
        region = Region(slots, slot_bytes)
        await region.register(client)
    except (OSError, InferenceServerException) as error:
        logger.warning(
            "sending pixels to triton by gRPC: it does not share memory with this service", extra={"why": str(error)}
        )
        return None
    return region


def is_lost(error: Any) -> bool:
    """Whether Triton does not know the region, since it was restarted."""
    return "shared memory region" in str(error)
