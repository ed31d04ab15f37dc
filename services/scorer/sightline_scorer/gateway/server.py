"""Entry point of the gateway. The settings are read before the application is."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from sightline.errors import SightlineError
from sightline_chassis import logs, traces
from sightline_chassis.settings import SettingsError, load_settings, resolved

from sightline_scorer.gateway.settings import GatewaySettings, HttpSettings

logger = logging.getLogger(__name__)


def main(config: Path | None, overrides: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        config: a YAML file of settings, or None.
        overrides: "section.key=value" from the command line.

    Returns:
        The exit code: 0 after an orderly end, 1 if it could not start, 2 for unusable settings.
    """
    try:
        settings = load_settings(GatewaySettings, service="scorer_http", config=config, overrides=list(overrides))
    except SettingsError as error:
        print(f"sightline-scorer-http: {error}", file=sys.stderr)
        return 2
    try:
        import uvicorn

        from sightline_scorer.gateway.app import gateway
        from sightline_scorer.gateway.reading import timely_protocol
    except ImportError as error:
        print(f"sightline-scorer-http: {error}: pip install 'sightline[gateway]'", file=sys.stderr)
        return 1
    logs.configure(settings.log, "scorer-http")
    logger.info("settings", extra={"settings": resolved(settings)})
    try:
        app = gateway(settings)
        listening = _bound(settings.http)
        traces.begin(settings.traces, "scorer-http")
    except (SightlineError, OSError) as error:
        logger.error("scorer-http could not start: %s", error)
        return 1
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=settings.http.drain_seconds,
            timeout_keep_alive=settings.http.idle_seconds,
            http=timely_protocol(settings.http.header_seconds),
            ssl_certfile=settings.http.certificate,
            ssl_keyfile=settings.http.key,
            server_header=False,
        )
    )
    announce = settings.http.announce
    host, port = listening.getsockname()[:2]
    if announce is not None:
        announce.parent.mkdir(parents=True, exist_ok=True)
        aside = announce.with_name(f".{announce.name}.{os.getpid()}")
        aside.write_text(json.dumps({"service": "scorer-http", "pid": os.getpid(), "http": f"{host}:{port}"}) + "\n")
        aside.replace(announce)
    logger.info("serving", extra={"http": f"{host}:{port}", "pid": os.getpid()})
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles them, and raises them again afterwards
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listening])
    finally:
        traces.end()
        if announce is not None:
            announce.unlink(missing_ok=True)
    return 0 if server.started else 1


def _bound(http: HttpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((http.host, http.port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {http.host}:{http.port} (http.port): {error}") from error
    return listening
