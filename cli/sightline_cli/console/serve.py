"""`sightline ui`: the console, served."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import uvicorn
from sightline.errors import InvalidInput, PreconditionFailed

from sightline_cli.console.app import console
from sightline_cli.console.service import RunsThere
from sightline_cli.console.source import Runs, RunsHere

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    directory: Path, trainer: str | None, credentials: Mapping[str, Any], host: str, port: int, token_file: Path | None
) -> None:
    """Serve until interrupted. Callers need a token, from the file or made now. They need it on this machine too, since
    pages of other sites and programs of other users can reach loopback.

    Raises:
        InvalidInput: the token's file is empty.
        PreconditionFailed: the port is not available.
    """
    runs: Runs = RunsHere(directory) if trainer is None else RunsThere(trainer, credentials)
    token = token_file.read_text(encoding="utf-8").strip() if token_file is not None else ""
    if token_file is not None and not token:
        raise InvalidInput(f"{token_file} is empty: write a token into it", reason="TOKEN_FILE")
    token = token or secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # callers of the address wait until the server is ready
    except OSError as error:
        raise PreconditionFailed(
            f"{host}:{port}: {error.strerror}; use --port 0 for a free one", reason="PORT"
        ) from error
    at = f"[{host}]" if ":" in host else host
    shown = f"http://{at}:{listening.getsockname()[1]}/?token={token}"
    typer.echo(f"{shown}  (Ctrl-C stops it; runs continue)")
    app = console(runs, token, local=host in LOCAL)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(settings).run(sockets=[listening])
