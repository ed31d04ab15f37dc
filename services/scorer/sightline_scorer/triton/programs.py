"""The program of an embedded backend: the wheel's tritonserver, or our worker if the settings name it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from sightline_chassis.traces import traces_url

from sightline_scorer.triton.installation import find
from sightline_scorer.triton.settings import TritonSettings


class BackendProgram(Protocol):
    """How to start a server for a model repository."""

    name: str
    """Its name in errors and the log."""

    def prepare(self, work: Path) -> None:
        """Prepare the files that it needs beside the repository."""

    def command(self, work: Path, address: str, shm_prefix: str) -> list[str]:
        """The command that serves `work`/repository at host:port."""

    def environment(self) -> dict[str, str]:
        """Its environment."""


class TritonProgram:
    """The wheel's tritonserver. Raises TritonNotInstalled if there is none that runs.

    Args:
        settings: where to look for it.
        endpoint: where spans are sent, as `traces.endpoint`; None: there are none.
    """

    name = "tritonserver"

    def __init__(self, settings: TritonSettings, endpoint: str | None = None) -> None:
        self._installation = find(settings.home)
        self._seconds = settings.start_timeout_seconds
        self._traces = endpoint

    def prepare(self, work: Path) -> None:
        """The Python backend with the stub of this interpreter."""
        self._installation.make_backends(work / "backends")

    def command(self, work: Path, address: str, shm_prefix: str) -> list[str]:
        """All sockets on loopback."""
        host, _, port = address.rpartition(":")
        return [
            str(self._installation.binary),
            f"--model-repository={work / 'repository'}",
            f"--backend-directory={work / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            f"--backend-config=python,stub-timeout-seconds={round(self._seconds)}",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--grpc-address={host}",
            f"--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--allow-gpu-metrics=false",
            *([] if self._traces is None else tracing(self._traces)),
        ]

    def environment(self) -> dict[str, str]:
        """The environment that the wheel needs."""
        return self._installation.environment()


def tracing(endpoint: str) -> list[str]:
    """Flags for sending spans only of requests that come with a trace."""
    settings = ("rate=0", "level=TIMESTAMPS", "mode=opentelemetry", f"opentelemetry,url={traces_url(endpoint)}")
    return [f"--trace-config={each}" for each in (*settings, "opentelemetry,resource=service.name=sightline-triton")]


class WorkerProgram:
    """Our worker, by this interpreter."""

    name = "the worker"

    def prepare(self, work: Path) -> None:
        """Nothing: it only needs the repository."""

    def command(self, work: Path, address: str, shm_prefix: str) -> list[str]:
        """On loopback."""
        worker = [sys.executable, "-m", "sightline_scorer.triton.worker"]
        return [*worker, "--repository", str(work / "repository"), "--address", address]

    def environment(self) -> dict[str, str]:
        """Our environment, with threads that do not spin while they wait."""
        return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def program(settings: TritonSettings, endpoint: str | None = None) -> BackendProgram:
    """The program that the settings name. Raises TritonNotInstalled."""
    return WorkerProgram() if settings.mode == "worker" else TritonProgram(settings, endpoint)
