"""Our arm: the scorer as `sightline serve scorer` starts it, with embedded Triton, and the CPU time of its parts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import Sample, cpu_seconds, peak_memory_mib, tree
from scorer_work import TEXTS, Request
from sightline.errors import Overloaded, SightlineError
from sightline.patience import ONCE
from sightline.scorer import AsyncScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_cli.processes import Processes


@dataclass
class Turn:
    """The cost of one turn."""

    wall: float = 0.0
    client: float = 0.0
    service: float = 0.0
    triton: float = 0.0
    latencies: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    pairs: int = 0

    @property
    def server(self) -> float:
        """CPU seconds of service and Triton."""
        return self.service + self.triton

    def sample(self, *, with_client: bool = False) -> Sample:
        """The turn for the harness: the server's cost, or everything."""
        return Sample(self.wall, self.server + (self.client if with_client else 0.0))

    def __add__(self, other: Turn) -> Turn:
        return Turn(
            self.wall + other.wall,
            self.client + other.client,
            self.service + other.service,
            self.triton + other.triton,
            self.latencies + other.latencies,
            self.outcomes + other.outcomes,
            self.pairs + other.pairs,
        )

    def figures(self) -> dict[str, Any]:
        """The figures in a row's detail."""
        pairs = max(1, self.pairs)
        return {
            "pairs_per_second": round(self.pairs / max(self.wall, 1e-9), 2),
            "p50_ms": round(1000 * float(np.percentile(self.latencies or [0.0], 50)), 1),
            "p99_ms": round(1000 * float(np.percentile(self.latencies or [0.0], 99)), 1),
            "client_cpu_ms_per_pair": round(1000 * self.client / pairs, 3),
            "service_cpu_ms_per_pair": round(1000 * self.service / pairs, 3),
            "triton_cpu_ms_per_pair": round(1000 * self.triton / pairs, 3),
            "requests": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
        }


class Service:
    """A running scorer."""

    def __init__(self, address: str, pid: int, *beside: Service) -> None:
        """`beside` are further scorers before the same Triton; callers alternate between all of them."""
        self.address = address
        if beside:
            self.address = f"ipv4:{','.join([address, *(each.address for each in beside)])}"
        self.pid, self.pids = pid, [pid, *(each.pid for each in beside)]

    def turn(self, requests: Sequence[Request], concurrency: int) -> Turn:
        """Send all requests, this many at a time; return CPU seconds and latencies."""
        return self._measured(lambda turn: self._all(turn, iter(requests), concurrency))

    def overload(self, requests: Iterator[Request], workers: int, seconds: float) -> Turn:
        """Run this many callers for this many seconds; a refused one waits as long as the service asked it to."""

        async def load(turn: Turn) -> None:
            stop = time.monotonic() + seconds

            async def worker() -> None:
                while time.monotonic() < stop:
                    wait = await _one(client, next(requests), turn)
                    await asyncio.sleep(min(wait, max(0.0, stop - time.monotonic())))

            async with AsyncScorerClient(self.address, patience=ONCE) as client:
                await asyncio.gather(*(worker() for _ in range(workers)))

        return self._measured(load)

    def memory_mib(self) -> dict[str, float]:
        """Resident memory now, by process kind."""
        found: dict[str, float] = {"service": sum(map(_resident_mib, self.pids))}
        found["triton"] = sum(_resident_mib(pid) for pid in tree(self.pids) - set(self.pids))
        return found

    def peak_mib(self) -> float:
        """Sum of the highest resident memories of service and Triton."""
        return sum(peak_memory_mib(pid) for pid in tree(self.pids))

    async def _all(self, turn: Turn, requests: Iterator[Request], concurrency: int) -> None:
        async def worker() -> None:
            for request in requests:
                await _one(client, request, turn)

        async with AsyncScorerClient(self.address) as client:
            await asyncio.gather(*(worker() for _ in range(concurrency)))

    def _measured(self, load: Any) -> Turn:
        turn = Turn()
        everything, service = cpu_seconds(self.pids), sum(map(_own_cpu, self.pids))
        client, wall = time.process_time(), time.perf_counter()
        asyncio.run(load(turn))
        turn.wall, turn.client = time.perf_counter() - wall, time.process_time() - client
        turn.service = sum(map(_own_cpu, self.pids)) - service
        turn.triton = cpu_seconds(self.pids) - everything - turn.service
        return turn


@contextmanager
def side_by_side(directory: Path, model: Path, count: int, *settings: str) -> Iterator[Service]:
    """Run `count` scorers before one Triton, which the first one starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ExitStack() as running:
        first = running.enter_context(serving(directory / "0", model, *settings, f"triton.port={port}"))
        remote = ("triton.mode=remote", f"triton.address=127.0.0.1:{port}")
        others = [
            running.enter_context(serving(directory / str(number), model, *settings, *remote))
            for number in range(1, count)
        ]
        yield Service(first.address, first.pid, *others)


@contextmanager
def serving(directory: Path, model: Path, *settings: str) -> Iterator[Service]:
    """Run a scorer of one model inside the block: one torch thread per tower, one decoding thread per core."""
    import json

    with Processes(directory) as processes:
        processes.start(
            "scorer",
            [
                f"models.default.source=local-dir:{model}",
                "triton.threads=1",
                "triton.device=cpu",
                # A machine busy with other work is slow, not hung.
                "triton.start_timeout_seconds=900",
                "triton.hung_after_seconds=3600",
                "triton.request_timeout_seconds=3600",
                "probe.timeout_seconds=300",
                "log.level=error",
                *settings,
            ],
        )
        address = processes.wait("scorer", seconds=900).grpc
        yield Service(address, json.loads((directory / "scorer.json").read_text())["pid"])


def bytes_per_pair(request: Request) -> float:
    """Bytes of a request's message for each pair; the answer adds about 20 bytes for each text."""
    return pb.ScoreRequest(image=pb.Image(content=request.image), texts=request.texts).ByteSize() / TEXTS


async def _one(client: AsyncScorerClient, request: Request, turn: Turn) -> float:
    """Send one request; return the seconds to wait if it was refused, else 0."""
    began = time.perf_counter()
    try:
        result = await client.score(request.image, request.texts, timeout=300)
    except SightlineError as error:
        turn.outcomes[error.reason] += 1
        return (error.retry_after or 0.0) if isinstance(error, Overloaded) else 0.0
    turn.latencies.append(time.perf_counter() - began)
    turn.outcomes["OK"] += 1
    turn.pairs += len(result)
    return 0.0


def _own_cpu(pid: int) -> float:
    import os

    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(value) for value in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 2**20
