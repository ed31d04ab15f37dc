"""A service as a process, or inside a test: bind, load, serve, announce, drain, stop.

sys.exit(run("scorer", ScorerSettings, make, config=path, overrides=[]))  # all of a service's main
sys.exit(serve(Scorer(settings), settings))                               # with settings that exist already
async with serving(Scorer(settings), settings) as at:                     # a test
    channel = open_aio_channel(at.grpc)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sightline.errors import SightlineError

from sightline_chassis import logs, traces
from sightline_chassis.sections import ServiceSettings
from sightline_chassis.server import Addresses, BindError, Server
from sightline_chassis.service import Service
from sightline_chassis.settings import SettingsError, load_settings, resolved

__all__ = ["Addresses", "BindError", "run", "serve", "serving"]

S = TypeVar("S", bound=ServiceSettings)
logger = logging.getLogger(__name__)
HURRY_SECONDS = 5.0


def run(
    name: str, cls: type[S], make: Callable[[S], Service], *, config: Path | None, overrides: Sequence[str] = ()
) -> int:
    """Read the settings and serve until a signal: the `main` of every service.

    Args:
        name: the service's short name; the environment's prefix is `SIGHTLINE_<NAME>__`.
        cls: class of its settings.
        make: makes the service from them; imports heavy packages only then, so that wrong settings are reported at
            once.
        config: a YAML file of settings, or None.
        overrides: "section.key=value" from the command line.

    Returns:
        The exit code: 0 after an orderly end, 1 if it could not start, 2 for unusable settings.
    """
    try:
        settings = load_settings(cls, service=name, config=config, overrides=list(overrides))
    except SettingsError as error:
        print(f"sightline-{name}: {error}", file=sys.stderr)
        return 2
    return serve(make(settings), settings)


@contextlib.asynccontextmanager
async def serving(service: Service, settings: ServiceSettings) -> AsyncIterator[Addresses]:
    """Serve inside the block; drain and stop at its end.

    Raises:
        BindError: a port is not available.
        Exception: the error of the service's `start`.
    """
    server = Server(service, settings)
    try:
        yield await server.start()
    finally:
        await server.close()


def serve(service: Service, settings: ServiceSettings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. For the main thread of a process.

    A second signal cuts the drain short and gives `stop` 5 s; a third one ends the process at once.

    Returns:
        The exit code: 0 after an orderly stop, 1 when the service could not start.
    """
    logs.configure(settings.log, service.name)
    logger.info("settings", extra={"settings": resolved(settings)})
    try:
        traces.begin(settings.traces, service.name)
        return asyncio.run(_serve(service, settings))
    except BindError as error:
        logger.error("%s could not start: %s", service.name, error)
    except SightlineError as error:
        logger.error(
            "%s could not start: %s", service.name, error, extra={"reason": error.reason, "code": error.code.name}
        )
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        logger.exception("%s failed: %s", service.name, told)
    except Exception:
        logger.exception("%s failed", service.name)
    finally:
        traces.end()
    return 1


async def _serve(service: Service, settings: ServiceSettings) -> int:
    server = Server(service, settings)
    signals = _Signals(server)
    tasks = [asyncio.ensure_future(server.start()), asyncio.ensure_future(signals.first.wait())]
    try:
        starting, stopping = tasks
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            gc.collect()
            gc.freeze()  # objects from the start stay: walking them in a full collection would delay every call
            tasks.append(asyncio.ensure_future(server.died()))
            await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise RuntimeError("gRPC's server stopped unexpectedly") from tasks[-1].exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await server.close()
    return 0


class _Signals:
    """Counts SIGTERM and SIGINT. Uses plain handlers, since asyncio's wait for a loop that may be stuck."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self.first = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: types.FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self._loop.call_soon_threadsafe(self.first.set)
        elif self._count == 2:
            self._loop.call_soon_threadsafe(self._server.hurry)
            timer = threading.Timer(HURRY_SECONDS, os._exit, (128 + number,))
            timer.daemon = True
            timer.start()
        else:
            os._exit(128 + number)
