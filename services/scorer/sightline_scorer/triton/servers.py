"""The backend's interface to a Triton server, and a Triton that runs elsewhere."""

from __future__ import annotations

import asyncio
from typing import Protocol

from sightline.errors import Unavailable

from sightline_scorer.settings import TritonSettings
from sightline_scorer.triton.connection import server_ready


class TritonServer(Protocol):
    """Where Triton runs: `EmbeddedTriton` or `RemoteTriton`."""

    def address(self) -> str:
        """host:port of the gRPC endpoint; raises Unavailable while there is none."""

    async def start(self) -> None:
        """Return when Triton and its models are ready."""

    async def stop(self) -> None:
        """Let it go."""

    async def restart(self, why: str) -> None:
        """Try to recover a hanging Triton."""


class RemoteTriton:
    """A Triton that others run, for example in a cluster."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings

    def address(self) -> str:
        """As configured."""
        return self._settings.address

    async def start(self) -> None:
        """Wait until it is ready. Raises Unavailable after triton.start_timeout_seconds."""
        deadline = asyncio.get_running_loop().time() + self._settings.start_timeout_seconds
        while not await server_ready(self._settings.address):
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"Triton at {self._settings.address} was not ready within "
                    f"{self._settings.start_timeout_seconds:g} s: see its log, and triton.address"
                )
            await asyncio.sleep(0.5)

    async def stop(self) -> None:
        """Nothing to do: others run it."""

    async def restart(self, why: str) -> None:
        """Nothing to do: its own probes restart it."""
