"""What every benchmark stands on: arms measured in turn, CPU seconds of process trees, and one form of result.

The machines that these run on are shared, so wall time says little: a figure is a ratio of CPU seconds of two things
that took turns in the same run (A B A B), with its spread beside it. The kernel counts in steps of 10 ms: let a turn
last a second.

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
    """One turn of one arm, in seconds: wall clock, and user + system time of all processes that took part."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One figure of a result.

    Attributes:
        name: what issues and docs call it.
        value: the figure.
        unit: "ratio", "pairs/s", "MiB", ...
        better: the direction that is better.
        target: what it should reach; None if nothing is asked.
        against: what it is compared with, in words.
        detail: median, spread, counts: whatever a reader needs to trust the value.
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
        """Whether there is a target and the value is on its wrong side."""
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
    """User + system seconds of process trees, ended and awaited children included.

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


def interleave(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    pids: Callable[[], Iterable[int]] | None = None,
) -> dict[str, list[Sample]]:
    """Let the arms take turns.

    Args:
        arms: name -> one turn's work, the same amount for each arm.
        rounds: turns of each arm that count.
        warmup: turns of each arm before, that do not count.
        pids: roots of the process trees to charge; None charges this process alone. A function, since servers restart.

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
    """FLOP a CPU-second of a float32 product of square matrices, with torch's threads as they are: the best of some
    turns, since a neighbour's work only takes away."""
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
    """What a reader must know of the machine: processor, cores, accelerator, the versions that matter."""
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
    """Write `NAME.json` and print the rows; those that miss their target are marked.

    Args:
        show: whether to print; false where a result is written as it grows.

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
    """To four places; what is smaller than a tenth to four digits, or a gap of rounding would be none."""
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
