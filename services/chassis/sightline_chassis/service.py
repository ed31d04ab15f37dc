"""The life of a service: bind, load, serve, say so, drain, stop.

class Scorer(Service):
    name = "scorer"
    proto_services = ("sightline_scorer.v1.ScorerService",)
    ...

sys.exit(serve(Scorer(settings), settings))          # a process
async with serving(Scorer(settings), settings) as at:  # a test
    channel = open_aio_channel(at.grpc)
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import grpc
from grpc_reflection.v1alpha import reflection

from sightline_chassis import logs, metrics
from sightline_chassis.admission import Admission
from sightline_chassis.errors import SightlineError
from sightline_chassis.health import Health
from sightline_chassis.interceptors import Interceptor
from sightline_chassis.settings import ServerSettings, ServiceSettings, resolved

LOG = logging.getLogger(__name__)
BEAT_SECONDS = 0.1
READY_SECONDS = 1.0


class Service(abc.ABC):
    """What a service tells the chassis about itself."""

    name: ClassVar[str]
    """Short name: "scorer"."""
    proto_services: ClassVar[tuple[str, ...]]
    """Full names of its gRPC services, for reflection, health and metrics."""
    unadmitted: ClassVar[tuple[str, ...]] = ()
    """Methods ("package.Service/Method") that run without admission: control, and streams that only watch."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Loads what is needed; the service is NOT_SERVING until this returns."""

    @abc.abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers; called after `start`."""

    async def ready(self) -> str | None:
        """None when the service can do its work, else why not; asked about every second."""
        return None

    async def drain(self) -> None:
        """Called when the drain begins: endless streams (watches) end here, or they hold it up."""
        return

    async def stop(self) -> None:
        """Gives back what `start` took. Called once, also when `start` failed half-way."""
        return


@dataclass(frozen=True)
class Addresses:
    """Where the service listens, each as "host:port"."""

    grpc: str
    health: str
    metrics: str


class BindError(Exception):
    """A port is taken or an address is not ours; the message names it and its setting."""


@contextlib.asynccontextmanager
async def serving(service: Service, settings: ServiceSettings) -> AsyncIterator[Addresses]:
    """Serves inside the block; drains and stops at its end.

    Raises:
        BindError: a port cannot be had.
    """
    server = _Server(service, settings)
    try:
        yield await server.start()
    finally:
        await server.close()


def serve(service: Service, settings: ServiceSettings) -> int:
    """Serves until SIGTERM or SIGINT, then drains. A second signal cuts the drain short, a third one everything.

    Returns:
        The exit code: 0 after an orderly end, 1 when the service could not start.
    """
    logs.configure(settings.log, service.name)
    LOG.info("settings", extra={"settings": resolved(settings)})
    return asyncio.run(_serve(service, settings))


async def _serve(service: Service, settings: ServiceSettings) -> int:
    signals = 0
    stopping = asyncio.Event()
    server: _Server | None = None

    def on_signal(number: int) -> None:
        nonlocal signals
        signals += 1
        LOG.info("signal %s", signal.Signals(number).name)
        stopping.set()
        if signals == 2 and server is not None:
            server.hurry()
        if signals > 2:
            os._exit(128 + number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        server = _Server(service, settings)
    except BindError as error:
        LOG.error("%s", error)
        return 1
    starting = asyncio.ensure_future(server.start())
    waiting = asyncio.ensure_future(stopping.wait())
    code = 0
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await waiting
    except SightlineError as error:
        LOG.error("%s could not start: %s", service.name, error)
        code = 1
    except Exception:
        LOG.exception("%s could not start", service.name)
        code = 1
    finally:
        waiting.cancel()
        starting.cancel()
        await asyncio.wait({starting})
        await server.close()
    return code


class _Server:
    """All that runs for one service. The three ports are bound when it is made."""

    def __init__(self, service: Service, settings: ServiceSettings) -> None:
        self._service = service
        self._settings = settings.server
        self._interceptor = Interceptor(Admission(settings.admission), service.unadmitted)
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._serving = False
        self._bind()

    def _bind(self) -> None:
        at = self._settings
        if at.announce is not None:
            at.announce.unlink(missing_ok=True)
        self._grpc = grpc.aio.server(interceptors=[self._interceptor], options=server_options(at))
        with _binding("server.port", at.host, at.port):
            port = self._grpc.add_insecure_port(_join(at.host, at.port))
        with _binding("server.health_port", at.host, at.health_port):
            self._health = Health(
                _join(at.host, at.health_port), self._service.proto_services, self._settings.liveness_seconds
            )
        with _binding("server.metrics_port", at.host, at.metrics_port):
            self._metrics = metrics.MetricsServer(at.host, at.metrics_port)
        self.addresses = Addresses(
            _join(at.host, port), _join(at.host, self._health.port), _join(at.host, self._metrics.port)
        )

    async def start(self) -> Addresses:
        """Loads the service and serves."""
        began = time.monotonic()
        metrics.set_build_info()
        metrics.preregister(self._service.proto_services)
        self._health.start()
        self._tasks.append(asyncio.create_task(self._beat()))
        await self._service.start()
        self._service.register(self._grpc)
        if self._settings.reflection:
            reflection.enable_server_reflection((*self._service.proto_services, reflection.SERVICE_NAME), self._grpc)
        await self._grpc.start()
        self._serving = True
        self._health.started()
        self._health.ready(await self._ask_ready() is None)
        self._tasks.append(asyncio.create_task(self._watch_readiness()))
        self._announce()
        seconds = round(time.monotonic() - began, 3)
        LOG.info("serving", extra={**asdict(self.addresses), "pid": os.getpid(), "start_seconds": seconds})
        return self.addresses

    def hurry(self) -> None:
        """Cuts the drain short."""
        self._hurry.set()

    async def close(self) -> None:
        """Drains, then stops everything."""
        for task in self._tasks[1:]:
            task.cancel()
        self._health.ready(False)
        if self._serving:
            await self._drain()
        else:
            await self._grpc.start()  # a server that never ran keeps its port
            await self._grpc.stop(None)
        try:
            await self._service.stop()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.to_thread(self._health.close)
            await asyncio.to_thread(self._metrics.close)
            if self._settings.announce is not None:
                self._settings.announce.unlink(missing_ok=True)
            LOG.info("stopped")

    async def _drain(self) -> None:
        LOG.info("draining", extra={"in_flight": self._interceptor.running})
        await self._pause(self._settings.notice_seconds)
        await self._service.drain()
        stopping = asyncio.create_task(self._grpc.stop(self._settings.drain_seconds))
        deadline = time.monotonic() + self._settings.drain_seconds
        # Watches of health and reflection do not count: they would hold the drain to its end.
        while self._interceptor.running and time.monotonic() < deadline and not self._hurry.is_set():
            await self._pause(0.02)
        if self._interceptor.running:
            LOG.warning("drain cut short", extra={"in_flight": self._interceptor.running})
        await self._grpc.stop(None)
        await stopping

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._health.beat()
            metrics.LOOP_LAG.observe(max(0.0, time.monotonic() - due))

    async def _watch_readiness(self) -> None:
        before: str | None = None
        while True:
            why = await self._ask_ready()
            self._health.ready(why is None)
            if why != before:
                LOG.warning("not ready: %s", why) if why else LOG.info("ready again")
            before = why
            await asyncio.sleep(READY_SECONDS)

    async def _ask_ready(self) -> str | None:
        try:
            async with asyncio.timeout(5 * READY_SECONDS):
                return await self._service.ready()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _announce(self) -> None:
        path = self._settings.announce
        if path is None:
            return
        text = json.dumps({"service": self._service.name, "pid": os.getpid(), **asdict(self.addresses)})
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, path)


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Channel arguments of the gRPC server."""
    limit = settings.max_message_mib * 1024 * 1024
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.so_reuseport", 0),  # else two services share a port without a word
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]


@contextlib.contextmanager
def _binding(setting: str, host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise BindError(f"cannot listen on {_join(host, port)} ({setting}): is it in use? {error}") from error


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
