"""Cost of a scorer apart from its work: CPU seconds to the first answer, and memory by process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Row, cpu_seconds, pss_mib
from scorer_service import serving
from scorer_work import Requests, model_directory


def start_and_memory(model: str, requests: int, work: Path) -> list[Row]:
    """Start a scorer twice: first without the model's cached card, then with it; then measure memory under load."""
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
            seconds[f"{start}, all of it"] = cpu_seconds() - before  # includes processes that have ended
    key = model.lower().replace("-", "_")
    shares = {name: round(value, 1) for name, value in proportional.items()}
    least, most = {"tiny": (800, None), "vit_b_32": (None, 2200)}.get(key, (None, None))
    return [
        Row(f"scorer_start_cpu_seconds_{key}", seconds["second"], "CPU-s", "lower", 6, "to the first answer", seconds),
        Row(f"scorer_pss_mib_{key}", sum(proportional.values()), "MiB", "lower", least, "all processes", shares),
        Row(f"scorer_peak_mib_{key}", peak, "MiB", "lower", most, f"{requests} requests, 32 at a time"),
    ]


@contextmanager
def _cache(directory: Path) -> Iterator[None]:
    """Use an empty cache of model cards, and one of bytecode: modules are compiled, as in pip's installations."""
    wanted = {"XDG_CACHE_HOME": str(directory), "PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
    before = {name: os.environ.get(name) for name in (*wanted, "PYTHONDONTWRITEBYTECODE")}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
