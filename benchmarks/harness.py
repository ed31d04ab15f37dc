"""Common parts of the benchmarks: arms measured in turn, CPU seconds of process trees, and one result format.

The machines are shared, so wall time says little. A figure is a ratio of CPU seconds of two arms that took turns in the
same run (A B A B), with its spread. The kernel counts in steps of 10 ms, so let a turn last a second.

    samples = interleave({"ours": ours, "theirs": theirs}, rounds=5)
    value, detail = ratio(samples["theirs"], samples["ours"])
    write("dpo", [Row("trl_over_ours", value, "ratio", "higher", 3.5, "TRL's DPOTrainer", detail)])
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
TICK = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One turn of one arm, in seconds: wall clock, and user + system time of all its processes."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One figure of a result.

    Attributes:
        name: its name in issues and docs.
        value: the figure.
        unit: "ratio", "pairs/s", "MiB", ...
        better: the direction that is better.
        target: the required value; None if there is none.
        against: the baseline, in words.
        detail: median, spread, counts, and whatever else a reader needs to trust the value.
    """

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    target: float | None = None
    against: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> bool:
        """Whether the value misses its target."""
        if self.target is None:
            return False
        return self.value < self.target if self.better == "higher" else self.value > self.target


def tree(pids: Iterable[int]) -> set[int]:
    """The processes and all their descendants that are alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found and Path(f"/proc/{pid}").exists():
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int] | None = None) -> float:
    """User + system seconds of process trees, including children that ended and were awaited.

    Args:
        pids: roots of the trees; None means this process.
    """
    total = 0.0
    for pid in tree([os.getpid()] if pids is None else pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15]) * TICK
    return total


def peak_memory_mib(pid: int | None = None) -> float:
    """Highest resident memory of a process so far, in MiB (VmHWM)."""
    for line in Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmHWM")


def pss_mib(pid: int) -> dict[str, float]:
    """Proportional memory of a process and its descendants, by command: the cost of shared pages is divided among the
    processes."""
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


def interleave(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    pids: Callable[[], Iterable[int]] | None = None,
) -> dict[str, list[Sample]]:
    """Run the arms in turn.

    Args:
        arms: name -> one turn's work, the same amount for each arm.
        rounds: turns of each arm that count.
        warmup: turns of each arm before these, not counted.
        pids: roots of the process trees to charge; None charges only this process. A function, because servers restart.

    Returns:
        The turns of each arm, in order.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    for turn in range(-warmup, rounds):
        for name, work in arms.items():
            roots = None if pids is None else list(pids())
            cpu, wall = cpu_seconds(roots), time.perf_counter()
            work()
            sample = Sample(time.perf_counter() - wall, cpu_seconds(roots) - cpu)
            print(f"{name}, turn {turn}: {sample.cpu:.1f} CPU-s, {sample.wall:.1f} s", file=sys.stderr, flush=True)
            if turn >= 0:
                samples[name].append(sample)
    return samples


def ratio(
    over: Sequence[Sample], under: Sequence[Sample], clock: Literal["cpu", "wall"] = "cpu"
) -> tuple[float, dict[str, Any]]:
    """Median of the turn-by-turn ratios, and its spread.

    Returns:
        The median, and a detail with the smallest and largest turn and both arms' medians in seconds.
    """
    pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(over, under, strict=True)]
    ratios = sorted(a / max(b, TICK) for a, b in pairs)
    detail = {
        "clock": clock,
        "turns": len(ratios),
        "min": round(ratios[0], 3),
        "max": round(ratios[-1], 3),
        "over_seconds": round(statistics.median(a for a, _ in pairs), 4),
        "under_seconds": round(statistics.median(b for _, b in pairs), 4),
    }
    return statistics.median(ratios), detail


def gemm_rate(side: int = 1024, turns: int = 9) -> float:
    """FLOP a CPU-second of a float32 product of square matrices, with torch's current threads: the best of several
    turns, because other work on the machine only slows it down."""
    import torch

    one, other = torch.rand(side, side), torch.rand(side, side)
    times = []
    for _ in range(turns):
        began = time.process_time()
        for _ in range(4):
            torch.mm(one, other)
        times.append((time.process_time() - began) / 4)
    return 2 * side**3 / min(times)


def machine() -> dict[str, Any]:
    """The machine: processor, cores, accelerator, and versions of the main packages."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "transformers", "trl", "grpcio", "open_clip_torch")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerator": _accelerator(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _accelerator() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write(name: str, rows: Sequence[Row], *, directory: Path = RESULTS, show: bool = True) -> Path:
    """Write `NAME.json` and print the rows, with a mark at those that miss their target.

    Args:
        show: whether to print; false while a result is still growing.

    Returns:
        The file.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit,
        "rows": [{**asdict(row), "value": _rounded(row.value)} for row in rows],
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if show:
        _print(name, rows)
        print(f"written: {path}")
    return path


def _rounded(value: float) -> float:
    """Round to four places; below a tenth, to four digits, so that small gaps do not become 0."""
    return round(value, 4) if abs(value) >= 0.1 else float(f"{value:.4g}")


def _print(name: str, rows: Sequence[Row]) -> None:
    table = Table("figure", "value", "unit", "target", "against", title=name, title_justify="left")
    for row in rows:
        sign = ">=" if row.better == "higher" else "<="
        target = "" if row.target is None else f"{sign} {row.target:g}"
        table.add_row(
            row.name,
            f"{row.value:.4g}",
            row.unit,
            f"[red]{target} missed[/red]" if row.missed else target,
            row.against,
        )
    Console().print(table)
