"""Everything that runs for one service in a process: the gRPC server, health, metrics, readiness and the announce
file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from sightline.errors import Unavailable

from sightline_chassis import client_metrics, metrics
from sightline_chassis.gate import INFRASTRUCTURE, Gate
from sightline_chassis.health import Health
from sightline_chassis.interceptors import Interceptor
from sightline_chassis.late_handlers import LateHandlers
from sightline_chassis.sections import ServerSettings, ServiceSettings, TlsSettings
from sightline_chassis.service import Service
from sightline_chassis.settings import resolved

if TYPE_CHECKING:
    from sightline_chassis.tls import Certificates

logger = logging.getLogger(__name__)
BEAT_SECONDS = 0.1
READY_SECONDS = 1.0
READY_TIMEOUT_SECONDS = 5.0
DIED_SECONDS = 1.0
FLUSH_SECONDS = 0.1
CLEANUP_SECONDS = 5.0


@dataclass(frozen=True)
class Addresses:
    """Where a service listens, each as "host:port"."""

    grpc: str
    health: str
    metrics: str


class BindError(Exception):
    """A port is taken or an address is not this machine's; the message names it and its setting."""


class Server:
    """One service, served. The three ports are bound when it is made, inside a running event loop.

    Raises:
        BindError: a port is not available.
        PreconditionFailed: the files of TLS or of tokens cannot be used.
    """

    def __init__(self, service: Service, settings: ServiceSettings) -> None:
        self._service = service
        self._settings = at = settings.server
        client_metrics.install()
        metrics.set_config_info(resolved(settings))
        self._gate = Gate(settings, service.unadmitted, service.costs)
        self._certificates = None if at.tls.mode == "disabled" else _certificates(at.tls)
        self._interceptor = Interceptor(self._gate, settings.admission.max_queue)
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._stopping = self._serving = False
        if at.announce is not None:
            at.announce.unlink(missing_ok=True)
        self._grpc = grpc.aio.server(interceptors=[self._interceptor], options=_options(at))
        with _binding("server.port", at.host, at.port):
            port = self._listen(_join(at.host, at.port))
        with _binding("server.health_port", at.host, at.health_port):
            self._health = Health(_join(at.host, at.health_port), service.proto_services, at.liveness_seconds)
        with _binding("server.metrics_port", at.host, at.metrics_port):
            self._metrics = metrics.MetricsServer(at.host, at.metrics_port)
        self.addresses = Addresses(
            _join(at.host, port), _join(at.host, self._health.port), _join(at.host, self._metrics.port)
        )

    async def start(self) -> Addresses:
        """Load the service, then serve it."""
        began = time.monotonic()
        self._health.start()
        self._tasks.append(asyncio.create_task(self._beat()))
        # The port is bound, so callers connect: a handshake that is not answered until the load is done would time out.
        # The interceptor holds the calls until there are handlers.
        late = LateHandlers(self._grpc)
        await self._grpc.start()
        await self._service.start()
        self._service.register(cast(grpc.aio.Server, late))
        self._health.add_to(cast(grpc.aio.Server, late))
        if self._settings.reflection:
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection.aio.ReflectionServicer((*self._service.proto_services, *INFRASTRUCTURE)), late
            )
        metrics.set_build_info()
        metrics.preregister(self._service.proto_services)
        self._serving = True
        self._health.started()
        self._health.ready(await self._why_not_ready() is None)
        self._interceptor.open()
        self._tasks.append(asyncio.create_task(self._watch_readiness()))
        self._announce()
        seconds = round(time.monotonic() - began, 3)
        logger.info("serving", extra={**asdict(self.addresses), "pid": os.getpid(), "start_seconds": seconds})
        return self.addresses

    def _listen(self, address: str) -> int:
        if self._certificates is None:
            return self._grpc.add_insecure_port(address)
        return self._grpc.add_secure_port(address, self._certificates.credentials())

    async def died(self) -> None:
        """Return, or raise, when gRPC's server has ended unexpectedly."""
        while await self._grpc.wait_for_termination(DIED_SECONDS):
            pass  # without a timeout, cancelling this wait would cancel gRPC's own shutdown

    def hurry(self) -> None:
        """Cut the drain short."""
        self._hurry.set()

    async def close(self) -> None:
        """Drain, then stop everything; also after a failed start."""
        self._stopping = True
        self._health.ready(False)
        try:
            try:
                await (self._drain() if self._serving else self._unbind())
            finally:
                await self._service.stop()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.to_thread(self._health.close)
            await asyncio.to_thread(self._metrics.close)
            self._withdraw()
            del self._grpc  # its __del__ needs the event loop
            logger.info("stopped")

    async def _drain(self) -> None:
        logger.info("draining", extra={"in_flight": self._interceptor.running})
        await _within(self._settings.notice_seconds, self._hurry)
        await self._service.drain()
        refusing = asyncio.create_task(self._grpc.stop(self._settings.drain_seconds))
        # gRPC's own grace also waits for open health watches, which would prolong every drain to its limit.
        await _within(self._settings.drain_seconds, self._interceptor.idle, self._hurry)
        if self._interceptor.running:
            logger.warning("drain cut short", extra={"in_flight": self._interceptor.running})
        await self._grpc.stop(FLUSH_SECONDS)
        await refusing
        await _within(CLEANUP_SECONDS, self._interceptor.idle)  # cancelled handlers clean up

    async def _unbind(self) -> None:
        self._interceptor.open(Unavailable(f"the {self._service.name} did not start", reason="START_FAILED"))
        await self._grpc.start()  # a server that never ran would keep its port; starting a running one does no harm
        await self._grpc.stop(FLUSH_SECONDS)

    async def _beat(self) -> None:
        logged: str | None = None
        while True:
            due = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            broken = self._service.broken() if self._serving else None
            if broken is None:
                self._health.beat()
            elif broken != logged:
                logger.critical("the service cannot recover by itself and should be restarted: %s", broken)
            logged = broken
            metrics.LOOP_LAG.observe(max(0.0, time.monotonic() - due))

    async def _watch_readiness(self) -> None:
        before: str | None = None
        while not self._stopping:
            self._look_at_files()
            why = await self._why_not_ready()
            if self._stopping:
                return
            self._health.ready(why is None)
            if why is not None and why != before:
                logger.warning("not ready: %s", why)
            elif why is None and before is not None:
                logger.info("ready again")
            before = why
            await asyncio.sleep(READY_SECONDS)

    def _look_at_files(self) -> None:
        self._gate.refresh()
        if self._certificates is not None:
            self._certificates.refresh()

    async def _why_not_ready(self) -> str | None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_SECONDS):
                return await self._service.ready()
        except TimeoutError:
            return f"no answer within {READY_TIMEOUT_SECONDS:g} s"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _announce(self) -> None:
        if (path := self._settings.announce) is not None:
            text = json.dumps({"service": self._service.name, "pid": os.getpid(), **asdict(self.addresses)})
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            aside.write_text(text + "\n", encoding="utf-8")
            aside.replace(path)

    def _withdraw(self) -> None:
        if (path := self._settings.announce) is not None:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():  # else our successor's
                    path.unlink()


async def _within(seconds: float, *events: asyncio.Event) -> None:
    """Wait for the first of the events, at most this many seconds."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _certificates(settings: TlsSettings) -> Certificates:
    from sightline_chassis.tls import Certificates

    return Certificates(settings)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    limit = settings.max_message_mib * 1024 * 1024
    age = settings.max_connection_seconds
    return [
        *([] if age is None else [("grpc.max_connection_age_ms", round(age * 1000))]),
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.so_reuseport", 0),  # otherwise two services silently share a port
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # also bounds keepalive's pings: the default is a minute
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),  # after a stall many pings arrive at once; that must not end calls
    ]


@contextlib.contextmanager
def _binding(setting: str, host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise BindError(f"cannot listen on {_join(host, port)} ({setting}); is it in use? {error}") from error


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
