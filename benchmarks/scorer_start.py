"""What a scorer costs before and beside its work: CPU seconds to the first answer, memory by process."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Row, cpu_seconds, tree
from scorer_service import serving
from scorer_work import Requests, model_directory


def start_and_memory(model: str, requests: int, work: Path) -> list[Row]:
    """Two starts of a scorer: the first knows nothing of the model, the second has its card; then memory under load."""
    directory = model_directory(model, work)
    own = Requests(model, seed=5)
    seconds = {}
    with _cache(work / "cards"):
        for start in ("first", "second"):
            before = cpu_seconds()
            with serving(work / f"start-{start}", directory) as service:
                service.turn(own.cold(1), 1)
                seconds[start] = cpu_seconds([service.pid])
                if start == "second":
                    service.turn(own.cold(requests), 32)
                    proportional = pss_mib(service.pid)
                    peak = service.peak_mib()
            seconds[f"{start}, all of it"] = cpu_seconds() - before  # processes that have ended too
    key = model.lower().replace("-", "_")
    shares = {name: round(value, 1) for name, value in proportional.items()}
    return [
        Row(f"scorer_start_cpu_seconds_{key}", seconds["second"], "CPU-s", "lower", 6, "to the first answer", seconds),
        Row(f"scorer_pss_mib_{key}", sum(proportional.values()), "MiB", "lower", 800, "all processes", shares),
        Row(f"scorer_peak_mib_{key}", peak, "MiB", "lower", 2200, f"{requests} requests, 32 at a time"),
    ]


def pss_mib(pid: int) -> dict[str, float]:
    """Proportional memory of a process and its descendants, by command: pages that several map are shared out."""
    found: Counter[str] = Counter()
    for each in tree([pid]):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            command = Path(f"/proc/{each}/comm").read_text().strip()
        except OSError:
            continue
        name = "service" if each == pid else command
        found[name] += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return dict(found)


@contextmanager
def _cache(directory: Path) -> Iterator[None]:
    """An empty cache of cards."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(directory)
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
