"""Processes: services started here, on loopback, and stopped for certain.

Each service runs in its own session (process group). It says where it listens by its announce file, dies with this
process even if this one is killed (Linux parent-death signal), and is stopped by SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from sightline_chassis.server import Addresses


class StartError(Exception):
    """A service did not come up; the message holds the end of its log."""


def _die_with_parent() -> None:
    """In the child: ask the kernel for SIGTERM when the parent ends, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


class Processes:
    """Services under one roof: a context manager that leaves no process behind."""

    def __init__(self, directory: Path) -> None:
        """Logs and announce files go to `directory`."""
        self.directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self, service: str, settings: Sequence[str], *, port: int = 0, environment: dict[str, str] | None = None
    ) -> None:
        """Start `sightline serve SERVICE` with `key=value` settings; `wait` tells when it serves."""
        announce = self._announce(service)
        announce.unlink(missing_ok=True)
        flags = [f"server.announce={announce}", f"server.port={port}", "server.health_port=0", "server.metrics_port=0"]
        command = [sys.executable, "-m", "sightline_cli", "serve", service]
        for setting in [*flags, *settings]:
            command += ["--set", setting]
        with self._log(service).open("wb") as log:
            self._running[service] = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                env={**os.environ, **(environment or {})},
            )

    def wait(self, service: str, *, seconds: float = 600.0) -> Addresses:
        """Wait until `service` serves.

        Raises:
            StartError: it ended or did not serve in time.
        """
        process, deadline = self._running[service], time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._announce(service).exists():
                said = json.loads(self._announce(service).read_text())
                return Addresses(said["grpc"], said["health"], said["metrics"])
            if process.poll() is not None:
                raise StartError(f"the {service} ended with exit code {process.returncode}:\n{self.tail(service)}")
            time.sleep(0.1)
        raise StartError(f"the {service} did not serve within {seconds:.0f} s:\n{self.tail(service)}")

    def wait_end(self, service: str, *, seconds: float = 30.0) -> int:
        """Wait until `service` has ended; its exit code."""
        return self._running[service].wait(seconds)

    def tail(self, service: str, lines: int = 15) -> str:
        """The end of a service's log."""
        return "\n".join(self._log(service).read_text(errors="replace").splitlines()[-lines:])

    def stop(self, *, seconds: float = 20.0) -> None:
        """SIGTERM to all, SIGKILL to the groups of those that stay."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + seconds
        for service, process in self._running.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._announce(service).unlink(missing_ok=True)
        self._running.clear()

    def _announce(self, service: str) -> Path:
        return self.directory / f"{service}.json"

    def _log(self, service: str) -> Path:
        return self.directory / f"{service}.log"
