"""Processes: services started here on loopback, and reliably stopped.

Each service runs in its own session (process group). Its announce file says where it listens. It dies with this
process, even if this one is killed (Linux parent-death signal), and is stopped by SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import contextlib
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
from typing import TYPE_CHECKING, Any

from sightline.errors import PreconditionFailed, SightlineError, Unavailable
from sightline_chassis.file_lock import locked

if TYPE_CHECKING:
    from sightline_chassis.server import Addresses


class StartError(Unavailable):
    """A service did not start; the message is the service's last one.

    Attributes:
        log: the end of its log.
    """

    reason = "SERVICE_START"
    log = ""


class StartRefused(PreconditionFailed):
    """A service did not start because its input is unusable. Same attributes as `StartError`."""

    reason = "SERVICE_START"
    log = ""


_GIVEN = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"}
"""Status codes for unusable input."""


def _parsed(line: str) -> dict[str, Any]:
    """A log line as JSON; empty if it is not JSON."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _die_with_parent() -> None:
    """In the child: ask the kernel for SIGTERM when the parent ends for any reason."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


_LOCK = ".lock"


def in_use(directory: Path) -> bool:
    """Whether the services of a running command log to a directory."""
    try:
        with (directory / _LOCK).open("rb") as file:
            return not locked(file)
    except FileNotFoundError:
        return False


class Processes:
    """A context manager for services that leaves no process behind."""

    def __init__(self, directory: Path, *, passing: bool = False) -> None:
        """Logs and announce files go to `directory`; a `passing` one is deleted before anyone could read it."""
        self.directory, self.passing = directory, passing
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        """Take the directory; raise PreconditionFailed (RUN_LEASED) if another command's services log to it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._taken = (self.directory / _LOCK).open("ab")
        if not locked(self._taken):
            self._taken.close()
            raise PreconditionFailed(
                f"another command's services log to {self.directory}: wait for it, or name another run directory",
                reason="RUN_LEASED",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._taken.close()

    def start(
        self, service: str, settings: Sequence[str], *, port: int = 0, environment: dict[str, str] | None = None
    ) -> None:
        """Start `sightline serve SERVICE` with `key=value` settings; `wait` returns when it serves."""
        announce = self._announce(service)
        announce.unlink(missing_ok=True)
        flags = [
            f"server.announce={announce}",
            "log.format=json",
            f"server.port={port}",
            "server.health_port=0",
            "server.metrics_port=0",
        ]
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
            StartRefused: it ended because its input is unusable: its settings, its model.
        """
        from sightline_chassis.server import Addresses

        process, deadline = self._running[service], time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._announce(service).exists():
                said = json.loads(self._announce(service).read_text(encoding="utf-8"))
                return Addresses(said["grpc"], said["health"], said["metrics"])
            if process.poll() is not None:
                raise self._ended(service, process.returncode)
            time.sleep(0.1)
        raise self._failed(StartError, service, f"the {service} did not serve within {seconds:.0f} s")

    def _ended(self, service: str, code: int) -> SightlineError:
        """The last message of a service that ended: an error in its log, or plain text about its input."""
        lines = self._log(service).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in map(_parsed, lines) if line.get("level") in ("error", "critical")]
        if said:
            cls = StartRefused if said[-1].get("code") in _GIVEN else StartError
            sentence = str(said[-1].get("message")).partition(":\n")[0]  # the rest is a log
            return self._failed(cls, service, sentence)
        for at, line in enumerate(lines):
            for before in (f"sightline-{service}: ", "error: "):
                if line.startswith(before):
                    told = "\n".join(lines[at:]).removeprefix(before)
                    return self._failed(StartRefused, service, f"{service} could not start: {told}")
        last = lines[-1][:300] if lines else "it said nothing"
        return self._failed(StartError, service, f"the {service} ended with exit code {code}: {last}")

    def _failed(self, cls: type[StartError] | type[StartRefused], service: str, told: str) -> SightlineError:
        error = cls(told if self.passing else f"{told} (its log: {self._log(service)})")
        error.log = self.tail(service)
        return error

    def wait_end(self, service: str, *, seconds: float = 30.0) -> int:
        """Wait until `service` has ended; its exit code."""
        return self._running[service].wait(seconds)

    def tail(self, service: str, lines: int = 15) -> str:
        """The end of a service's log."""
        return "\n".join(self._log(service).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self, *, seconds: float = 20.0) -> None:
        """SIGTERM to all, SIGKILL to the groups of those that keep running; at once after another Ctrl-C."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + seconds
        for service, process in self._running.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as hurry:
                if isinstance(hurry, KeyboardInterrupt):
                    deadline = time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._announce(service).unlink(missing_ok=True)
        self._running.clear()

    def _announce(self, service: str) -> Path:
        return self.directory / f"{service}.json"

    def _log(self, service: str) -> Path:
        return self.directory / f"{service}.log"
