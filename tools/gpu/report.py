"""Results of a step on a GPU, written row by row, so that earlier rows stay however the step ends."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import torch  # noqa: E402
from harness import Row  # noqa: E402

Better = Literal["higher", "lower"]


class Report:
    """Rows of a step.

    Attributes:
        dry: use tiny shapes, on any device.
        device: "cuda" or "cpu".
        dtype: bfloat16 on a GPU, float32 on a CPU.
        out: directory of the results.
    """

    def __init__(self, step: str, out: Path, *, dry: bool) -> None:
        self.step, self.out, self.dry = step, out, dry
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.began = time.monotonic()
        self._file = out / f"{step}.jsonl"
        self._file.write_text("")

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        better: Better = "higher",
        target: float | None = None,
        against: str = "",
        **detail: Any,
    ) -> None:
        """Add a row; `name` gets the prefix gpu_."""
        seconds = round(time.monotonic() - self.began, 1)
        row = Row(f"gpu_{name}", float(value), unit, better, target, against, {**detail, "at_seconds": seconds})
        self._write({**asdict(row), "value": float(f"{row.value:.6g}")})
        print(f"[{self.step} {seconds:6.1f} s] {row.name} = {value:.5g} {unit} {json.dumps(detail)[:300]}", flush=True)

    def error(self, name: str, error: BaseException) -> None:
        """Record what could not be measured, and why."""
        text = f"{type(error).__name__}: {error}"
        self._write({"name": f"gpu_{name}", "error": text[:2000], "where": traceback.format_exc()[-1500:]})
        print(f"[{self.step}] {name} FAILED {text[:1500]}", flush=True)
        traceback.print_exc()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part whose failure does not end the step."""
        try:
            yield
        except Exception as error:
            self.error(name, error)
        finally:
            free()

    def peak_tflops(self) -> float:
        """The card's dense bf16 rate in TFLOP/s, as the first step measured it; a placeholder on a CPU."""
        for line in (self.out / "card.jsonl").read_text().splitlines() if (self.out / "card.jsonl").exists() else ():
            row = json.loads(line)
            if row["name"] == "gpu_matmul_bf16" and "value" in row:
                return float(row["value"])
        return 798.0 if self.device == "cuda" else 0.05

    def _write(self, entry: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def free() -> None:
    """Release unused memory."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sync() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], *, times: int = 5, warmup: int = 2) -> list[float]:
    """Sorted wall seconds of some calls, each with the wait for the device."""
    for _ in range(warmup):
        work()
    found = []
    for _ in range(times):
        sync()
        began = time.perf_counter()
        work()
        sync()
        found.append(time.perf_counter() - began)
    return sorted(found)


def median(values: list[float]) -> float:
    """The median value."""
    return sorted(values)[len(values) // 2]


def run(step: str, work: Callable[[Report], None]) -> None:
    """Entry point of a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    report = Report(step, given.out, dry=given.dry)
    torch.manual_seed(0)
    with report.part(step):
        work(report)
