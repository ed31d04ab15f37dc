"""Health on a separate port: a sync server with its own threads, which a busy event loop cannot starve.

Names to ask for: "" and "readiness" (the service can work now), "startup" (it has started), "liveness" (its event loop
runs), and the full names of its gRPC services (as ""). The service's own port answers too, and supports Watch for
clients that follow their servers' health (`channel_options(health_service=...)`).

The servicers of grpcio-health-checking are not used: in the sync one, a watcher that leaves while a status is set locks
both for good (its `set` waits for a write under the lock that the server's only event thread needs).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STARTUP, LIVENESS, READINESS = "startup", "liveness", "readiness"

_Response: Any = health_pb2.HealthCheckResponse


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
        self._ready_names = {"", READINESS, *services}
        self._limit = liveness_seconds
        self._beat = time.monotonic()
        self._started = self._ready = False
        self.changed = asyncio.Event()
        """Set at the next change of readiness; a new one follows."""
        self._server = grpc.server(ThreadPoolExecutor(2, "health"), options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(_Servicer(self), self._server)
        self.port: int = self._server.add_insecure_port(address)

    def start(self) -> None:
        """Start answering: alive, not started, not ready."""
        self._server.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.stop(None).wait()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer on the service's own port too."""
        health_pb2_grpc.add_HealthServicer_to_server(_AioServicer(self), server)

    def beat(self) -> None:
        """Called repeatedly by the event loop."""
        self._beat = time.monotonic()

    def started(self) -> None:
        """The service has started."""
        self._started = True

    def ready(self, ready: bool) -> None:
        """The service can (or cannot) work now; called by the event loop."""
        if ready is not self._ready:
            self._ready = ready
            self.changed.set()
            self.changed = asyncio.Event()

    def status(self, name: str) -> Any:
        """The `ServingStatus` of a name; SERVICE_UNKNOWN if the name is unknown."""
        good = {
            STARTUP: self._started,
            LIVENESS: time.monotonic() - self._beat < self._limit,
            **dict.fromkeys(self._ready_names, self._ready),
        }
        if name not in good:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if good[name] else _Response.NOT_SERVING


class _Servicer(health_pb2_grpc.HealthServicer):
    def __init__(self, health: Health) -> None:
        self._health = health

    def Check(self, request: Any, context: Any) -> Any:
        status = self._health.status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return _Response(status=status)

    def Watch(self, request: Any, context: Any) -> Any:
        # A watcher would occupy one of the few threads.
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Check here, or Watch on the port of the service")


class _AioServicer(health_pb2_grpc.HealthServicer):
    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: Any, context: Any) -> Any:
        status = self._health.status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return _Response(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        last = None
        while True:
            changed = self._health.changed
            status = self._health.status(request.service)
            if status != last:
                yield _Response(status=status)
            last = status
            await changed.wait()
