"""Health on a port of its own: a sync server with its own threads, which a busy event loop cannot starve.

Names that can be asked for: "" and "readiness" (the service does its work now), "startup" (it came up), "liveness" (its
event loop turns), and the full names of its gRPC services (as ""). The service's own port answers for "" and the full
names as well, for clients that watch their servers' health (`channel_options(health_service=...)`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

STARTUP, LIVENESS, READINESS = "startup", "liveness", "readiness"

_RESPONSE: Any = health_pb2.HealthCheckResponse
_STATUS = {True: _RESPONSE.SERVING, False: _RESPONSE.NOT_SERVING}


class Health:
    """The health of one service.

    Args:
        address: "host:port" to listen on, port 0 for a free one.
        services: full names of the gRPC services.
        liveness_seconds: how long the event loop may be stuck before "liveness" is NOT_SERVING.

    Raises:
        RuntimeError: the port is taken.
    """

    def __init__(self, address: str, services: Iterable[str], liveness_seconds: float) -> None:
        self._ready_names = ("", READINESS, *services)
        self._limit = liveness_seconds
        self._beat = time.monotonic()
        # Watchers must not hold the two threads: hence non-blocking, with a thread to tell them.
        self._servicer = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1, "health-watch")
        )
        self._server = grpc.server(ThreadPoolExecutor(2, "health"), options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self.port: int = self._server.add_insecure_port(address)
        self.beside = health.aio.HealthServicer()
        """The servicer for the service's own port."""
        self._closed = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="health-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to answer: alive, not started, not ready."""
        self._set((STARTUP, *self._ready_names), False)
        self._set((LIVENESS,), True)
        self._server.start()
        self._watchdog.start()

    def beat(self) -> None:
        """To be called by the event loop, again and again."""
        self._beat = time.monotonic()

    def started(self) -> None:
        """The service came up."""
        self._set((STARTUP,), True)

    async def ready(self, ready: bool) -> None:
        """The service can (not) do its work now."""
        self._set(self._ready_names, ready)
        for name in self._ready_names:
            await self.beside.set(name, _STATUS[ready])

    def close(self) -> None:
        """Stops answering."""
        self._closed.set()
        if self._watchdog.ident is not None:
            self._watchdog.join()
        self._server.stop(None).wait()

    def _watch(self) -> None:
        while not self._closed.wait(min(0.25, self._limit / 4)):
            self._set((LIVENESS,), time.monotonic() - self._beat < self._limit)

    def _set(self, names: Iterable[str], good: bool) -> None:
        for name in names:
            self._servicer.set(name, _STATUS[good])
