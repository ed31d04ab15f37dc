"""Scorer running: a real scorer with its real Triton, in the test process or a separate one."""

import asyncio
import atexit
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import scorer_models
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline_chassis.process import Addresses, serving
from sightline_chassis.settings import load_settings
from sightline_scorer.settings import ScorerSettings

QUICK = [
    "triton.device=cpu",
    "triton.threads=1",
    "triton.stop_grace_seconds=0",
    "server.notice_seconds=0",
    "server.drain_seconds=2",
    "log.level=error",
]
CLIP = Path(__file__).parents[1] / "playground/weights/clip"


class RunningScorer:
    """A scorer served from a thread of this process.

    Args:
        overrides: settings, beside QUICK.
    """

    def __init__(self, *overrides: str) -> None:
        self.settings = load_settings(ScorerSettings, service="scorer", overrides=[*QUICK, *overrides])
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        self.channel = grpc.insecure_channel(self.at.grpc, options=[("grpc.max_send_message_length", -1)])
        self.stub: Any = scorer_pb2_grpc.ScorerServiceStub(self.channel)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        from sightline_scorer.service import ScorerService

        self.service = ScorerService(self.settings, reread=lambda: self.settings)
        try:
            async with serving(self.service, self.settings) as self.at:
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    at: Addresses

    def score(self, image: bytes, texts: list[str], seconds: float = 20, **fields: Any) -> pb.ScoreResponse:
        """One Score, without retries."""
        request = pb.ScoreRequest(image=pb.Image(content=image), texts=texts, **fields)
        return self.stub.Score(request, timeout=seconds)

    def stop(self) -> None:
        """Drain and stop; idempotent."""
        if self._thread.is_alive():
            self.channel.close()
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)


@functools.cache
def shared() -> tuple[RunningScorer, dict[str, Path]]:
    """The scorer shared by most test modules, with two small models: `tiny` (the default) and `siglip`.

    Started once for a test run; ends with the interpreter.
    """
    directory = Path(tempfile.mkdtemp(prefix="sightline-test-"))
    models = {"tiny": scorer_models.tiny(directory / "tiny"), "siglip": scorer_models.siglip(directory / "siglip")}
    scorer = RunningScorer(
        *(f"models.{name}.source={path}" for name, path in models.items()),
        "default_model=tiny",
        "limits.max_image_pixels=4000000",
        "limits.max_image_bytes=2000000",
        "image_store.max_bytes=1000000",
        "admission.max_wait_seconds=120",  # a crowded machine must not refuse what a test has queued
    )
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(scorer.stop)
    return scorer, models


def until(what: Callable[[], Any], seconds: float, step: float = 0.1) -> Any:
    """Call `what` until it returns something true; fail after this many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(step)
    raise AssertionError(f"not within {seconds} s: {what}")


def children(pid: int) -> list[int]:
    """Process ids of all descendants of `pid`."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        below = [child for child, of in parents.items() if of == parent]
        found += below
        todo += below
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
