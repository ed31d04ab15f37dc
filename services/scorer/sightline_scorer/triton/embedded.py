"""Starts the wheel's `tritonserver`, or our worker, restarts it when it dies, and cleans up after it.

    service ──stdin pipe──> guard.py ──> tritonserver ──> one Python stub for each tower
                                   (or) worker.py ─────> one process for each tower

The guard leads its own process group, so a Ctrl-C at the terminal reaches only the service. When the service ends for
any reason, the pipe closes and the whole group is stopped. All sockets are on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sightline.errors import PreconditionFailed, Unavailable

from sightline_scorer.metrics import TRITON_RESTARTS, backend_up
from sightline_scorer.settings import TritonSettings
from sightline_scorer.triton.connection import server_ready
from sightline_scorer.triton.programs import BackendProgram, program

logger = logging.getLogger(__name__)
_HOST = "127.0.0.1"


class TritonFailed(PreconditionFailed):
    """Triton could not be started; the message contains the end of its log."""

    reason = "TRITON_FAILED"


class EmbeddedTriton:
    """A supervised tritonserver, or worker if the settings say so.

    Args:
        settings: where to find it, and time limits.
        build: writes the model repository into a given directory; called before every start, since a cleaner of
            temporary files may have removed it.
        endpoint: where its spans are sent, as `traces.endpoint`; None: no traces.
    """

    def __init__(self, settings: TritonSettings, build: Callable[[Path], None], endpoint: str | None = None) -> None:
        self._settings, self._endpoint = settings, endpoint
        self._build = build
        self._program: BackendProgram | None = None
        self._up = backend_up(settings)
        self._own_work_dir = settings.work_dir is None
        self._work = settings.work_dir.resolve() if settings.work_dir is not None else Path()
        self._process: asyncio.subprocess.Process | None = None
        self._building: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._address: str | None = None
        self._trouble = "it has not been started"
        self._start_seconds = 10.0
        self.pid: int | None = None
        """Process id of tritonserver or of the worker, while it runs."""

    @property
    def repository(self) -> Path:
        """The model repository; its models are loaded at every start."""
        return self._work / "repository"

    @property
    def log_path(self) -> Path:
        """The output of tritonserver and the models since its last start."""
        return self._work / "triton.log"

    def address(self) -> str:
        """host:port of the gRPC endpoint. Raises Unavailable while Triton is down."""
        if self._address is None:
            raise Unavailable(
                f"the model backend (Triton) is being restarted: {self._trouble}; try again",
                reason="BACKEND_DOWN",
                retry_after=self._start_seconds,
            )
        return self._address

    async def start(self) -> None:
        """Build the repository and start Triton; returns when all models are ready.

        Raises TritonNotInstalled, TritonFailed, or the errors of building the repository.
        """
        self._program = program(self._settings, self._endpoint)
        if self._own_work_dir:
            self._work = Path(tempfile.mkdtemp(prefix="sightline-scorer-"))
        shutil.rmtree(self.repository, ignore_errors=True)
        await self._launch()
        self._watch = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End Triton and remove the work directory, if it is a temporary one."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._building is not None:
            await asyncio.wait([self._building])  # a thread cannot be stopped, and this one writes there
        await self._end()
        if self._own_work_dir and self._building is not None:
            shutil.rmtree(self._work, ignore_errors=True)  # a few small files

    async def restart(self, why: str) -> None:
        """Stop a hanging Triton; the supervision restarts it."""
        logger.error("restarting triton", extra={"why": why})
        self._set_down(why)
        await self._end(b"now")

    async def _supervise(self) -> None:
        while True:
            process = self._process
            if process is not None:
                await process.wait()
                _kill_group(process.pid)
            self._set_down(self._trouble if self._address is None else f"{self._name} died")
            logger.error("triton died; restarting it", extra={"log_tail": self._log_tail()})
            await self._start_again()

    async def _start_again(self) -> None:
        delay = self._settings.restart_delay_seconds
        while True:
            await asyncio.sleep(delay)
            TRITON_RESTARTS.inc()
            try:
                await self._launch()
            except Exception as error:  # any error: the next try may succeed
                self._trouble = str(error).partition(":\n")[0]  # the rest is log output, only for our log
                delay = min(max(2 * delay, 0.1), self._settings.restart_delay_max_seconds)
                extra = {"why": str(error), "next_try_seconds": delay}
                logger.error("triton could not be restarted", extra=extra, exc_info=not isinstance(error, TritonFailed))
            else:
                return

    async def _lay_out(self) -> None:
        assert self._program is not None
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._building = asyncio.create_task(asyncio.to_thread(self._build, self.repository))
        await asyncio.shield(self._building)
        self._program.prepare(self._work)

    async def _launch(self) -> None:
        await self._lay_out()
        began = time.monotonic()
        for last_try in (False, False, True):
            address = f"{_HOST}:{self._settings.port or _free_port()}"
            try:
                await self._spawn(address)
                await self._wait_until_ready(address, began)
                break
            except TritonFailed as error:
                await self._end()
                if last_try or "already in use" not in str(error):  # another process took the port meanwhile
                    raise
            except BaseException:
                await self._end()
                raise
        self._address = address
        self._start_seconds = time.monotonic() - began
        self._up.set(1)
        logger.info(
            "triton is ready" if self._settings.mode == "embedded" else "the worker is ready: there is no triton",
            extra={"address": self._address, "pid": self.pid, "seconds": self._start_seconds},
        )

    @property
    def _name(self) -> str:
        return self._program.name if self._program is not None else "tritonserver"

    @property
    def _shm_prefix(self) -> str:
        return f"sightline_{os.getpid()}_{id(self):x}_"

    async def _spawn(self, address: str) -> None:
        assert self._program is not None
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
        guard += [str(self._settings.stop_grace_seconds), self._shm_prefix]
        guard.append(str(self._work) if self._own_work_dir else "")
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *guard,
                *self._program.command(self._work, address, self._shm_prefix),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._program.environment(),
                cwd=self._work,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        first = await self._process.stdout.readline()
        if not first.strip().isdigit():
            raise TritonFailed(f"{self._name} could not be executed:\n{self._log_tail()}")
        self.pid = int(first)

    async def _wait_until_ready(self, address: str, began: float) -> None:
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        try:
            while not (_listens(address) and await server_ready(address)):
                if ended.done():
                    raise TritonFailed(f"{self._name} ended while it was starting{self._cause()}:\n{self._log_tail()}")
                if time.monotonic() - began > self._settings.start_timeout_seconds:
                    raise TritonFailed(
                        f"{self._name} was not ready within triton.start_timeout_seconds="
                        f"{self._settings.start_timeout_seconds:g}:\n{self._log_tail()}"
                    )
                await asyncio.wait([ended], timeout=0.1)
        finally:
            ended.cancel()

    async def _end(self, word: bytes = b"stop") -> None:
        process, self._process, self._address, self.pid = self._process, None, None, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.write(word)  # tells the guard that we are alive and remove the work directory
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), self._settings.stop_grace_seconds + 2)
        except TimeoutError:
            _kill_group(process.pid)
            await process.wait()

    def _set_down(self, why: str) -> None:
        self._address = None
        self._trouble = why
        self._up.set(0)

    def _cause(self) -> str:
        """Which model could not be loaded and why, if Triton's log says so."""
        told = [line for line in self._log_tail(400).splitlines() if "failed to load" in line]
        return f" ({told[0][told[0].index('failed to load') :][:300]})" if told else ""

    def _log_tail(self, lines: int = 25) -> str:
        """The end of Triton's log, without its tables."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(no log)"
        kept = [line for line in text.splitlines() if line.strip() and not line.startswith(("+-", "|"))]
        return "\n".join(kept[-lines:])


def _kill_group(leader: int) -> None:
    """Stop processes left by a guard that was killed itself: the stubs of an unreaped tritonserver remain."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _listens(address: str) -> bool:
    """Whether somebody has the port, which is opened when the models are loaded. A channel costs much more to try."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
