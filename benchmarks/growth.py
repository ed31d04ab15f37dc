"""Growth: costs as a function of size. Rows are slopes of the cost between two sizes.

    make bench-growth                   about five minutes
    python benchmarks/growth.py --quick
    python benchmarks/growth.py --only pools

- **pools**: open a JSON dataset of 10,000 and of 1,000,000 rows, and 10,000 and 100,000 of LLaVA's conversations: CPU
seconds and peak memory per row.
- **runs**: `ListRuns` of a trainer service over 10 and 1,000 runs, the first page: CPU milliseconds per call.
- **report**: the report of a run of 3 and of 30 iterations: CPU seconds and bytes per iteration. The 30 are copies.
- **prompts**: one iteration of the playground's loop (K = 2, no evaluation) at 256 and 4,096 prompts: CPU seconds of
all processes per prompt, and the growth of the trainer's memory.
- **store**: put images into a full store, where each evicts an old one, at 1,000 and 100,000 stored images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, Row, cpu_seconds, peak_memory_mib, pss_mib, write

PARTS = ("pools", "runs", "report", "prompts", "store")
OPENS = """
import resource, sys
from sightline_trainer.pools import open_pool
before = resource.getrusage(resource.RUSAGE_SELF)
pool = open_pool(sys.argv[1])
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(len(pool), cpu, (after.ru_maxrss - before.ru_maxrss) * 1024)
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the larger sizes")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part")
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sightline-bench-growth-") as name:
        for part in given.only or PARTS:
            work = Path(name) / part
            work.mkdir()
            rows += {"pools": pools, "runs": runs, "report": report, "prompts": prompts, "store": store}[part](
                work, given.quick
            )
    suffix = "".join(f"-{part}" for part in given.only or ()) + ("-quick" if given.quick else "")
    write(f"growth{suffix}", rows)


def _slope(name: str, unit: str, scale: float, costs: dict[int, float]) -> Row:
    """Cost of one more item between the smaller and the larger size, with the ratio of both costs per item."""
    (small, cheap), (large, dear) = sorted(costs.items())
    per_item = {str(size): float(f"{scale * cost / size:.4g}") for size, cost in sorted(costs.items())}
    against = f"between {small:,} and {large:,}"
    return Row(name, scale * (dear - cheap) / (large - small), unit, "lower", None, against, {"a_piece_at": per_item})


def pools(work: Path, quick: bool) -> list[Row]:
    """Open a JSON-lines dataset, and a file of LLaVA's conversations (1.2 kB each), in a separate process."""
    shutil.copy(ROOT / "playground/world.png", work / "a.png")
    cpu, memory, conversations = dict[int, float](), dict[int, float](), dict[int, float]()
    for size in (10_000, 100_000 if quick else 1_000_000):
        path = work / f"{size}.jsonl"
        with path.open("w") as file:
            for number in range(size):
                row = {"id": f"{number:08d}", "image": "a.png", "prompt": f"Describe picture {number} in one sentence."}
                file.write(json.dumps(row) + "\n")
        cpu[size], memory[size] = _opened(path, size)
    for size in (10_000, 100_000):
        path = work / f"{size}.json"
        said = [{"from": who, "value": 20 * " some words"} for _ in range(3) for who in ("human", "gpt")]
        rows = [{"id": f"{number:012d}", "image": "a.png", "conversations": said} for number in range(size)]
        path.write_text(json.dumps(rows))
        conversations[size], _ = _opened(f"llava:{path}", size)
    return [
        _slope("pool_cpu_us_a_row", "CPU-us", 1e6, cpu),
        _slope("pool_bytes_a_row", "bytes", 1, memory),
        _slope("conversations_cpu_us_a_row", "CPU-us", 1e6, conversations),
    ]


def _opened(reference: str | Path, rows: int) -> tuple[float, float]:
    """CPU seconds and bytes of opening a dataset with this many rows."""
    told = subprocess.run([sys.executable, "-c", OPENS, str(reference)], capture_output=True, text=True, check=True)
    count, cpu, memory = map(float, told.stdout.split())
    assert count == rows
    return cpu, memory


def _run(directory: Path, name: str) -> Path:
    """The directory of a finished run of a trainer service."""
    from sightline_trainer.recipe import Recipe
    from sightline_trainer.runs import RunDirectory

    run = RunDirectory(directory / name)
    run.open(Recipe.model_validate({"name": "growth", "model": "m", "data": {"train": "a", "test": "b"}}))
    run.set_state("succeeded", request_id=name, queued=time.time())
    return run.root


def runs(work: Path, quick: bool) -> list[Row]:
    """ListRuns of a real service."""
    from sightline import RunClient
    from sightline_cli.processes import Processes

    cpu, idle = {}, {}
    for size in (10, 100 if quick else 1_000):
        directory = work / str(size)
        first = _run(directory, "run-0000")
        state = json.loads((first / "run.json").read_text())
        for number in range(1, size):
            name = f"run-{number:04d}"
            shutil.copytree(first, directory / name)
            (directory / name / "run.json").write_text(json.dumps({**state, "id": name, "request_id": name}))
        with Processes(work / f"service-{size}") as processes:
            processes.start("trainer", [f"runs={directory}", f"recipes={ROOT / 'recipes'}", "log.level=error"])
            address = processes.wait("trainer", seconds=300).grpc
            pid = json.loads((work / f"service-{size}/trainer.json").read_text())["pid"]
            idle[size] = pss_mib(pid)
            with RunClient(address) as trainer:
                next(iter(trainer.list()))
                before, calls = cpu_seconds([pid]), 20
                for _ in range(calls):
                    page = next(iter(trainer.list()))
                cpu[size] = (cpu_seconds([pid]) - before) / calls
        assert page
    (small, cheap), (large, dear) = sorted(cpu.items())
    memory = sum(idle[small].values())
    return [
        Row("trainer_idle_pss_mib", memory, "MiB", "lower", 150, f"a service with {small} runs", idle[small]),
        Row(f"list_runs_cpu_ms_{small}", 1e3 * cheap, "CPU-ms", "lower"),
        Row(f"list_runs_cpu_ms_{large}", 1e3 * dear, "CPU-ms", "lower"),
        _slope("list_runs_cpu_us_a_run", "CPU-us", 1e6, cpu),
    ]


def report(work: Path, quick: bool) -> list[Row]:
    """A playground run with 3 iterations, and the same run extended by copies of its iterations."""
    from sightline_trainer.report.history import History
    from sightline_trainer.report.page import page

    subprocess.run(
        [sys.executable, "-m", "sightline_cli", "demo", "--quick", "--run", str(work / "run"), "--json"],
        check=True,
        capture_output=True,
    )
    many = 10 if quick else 30
    last = max(int(path.name) for path in (work / "run/iterations").iterdir())
    for number in range(last + 1, many + 1):
        _copy_iteration(work / "run", last, number)
    small = 3
    shutil.copytree(work / "run", work / "few")
    for number in range(small + 1, many + 1):
        shutil.rmtree(work / f"few/iterations/{number:04d}")
    cpu, size = {}, {}
    for iterations, directory in ((small, work / "few"), (many, work / "run")):
        page([History.read(directory)])
        before = time.process_time()
        text = page([History.read(directory)])
        cpu[iterations], size[iterations] = time.process_time() - before, len(text.encode())
    return [
        _slope("report_cpu_ms_an_iteration", "CPU-ms", 1e3, cpu),
        _slope("report_kib_an_iteration", "KiB", 1 / 1024, {number: float(value) for number, value in size.items()}),
    ]


def _copy_iteration(run: Path, number: int, to: int) -> None:
    target = run / f"iterations/{to:04d}"
    shutil.copytree(run / f"iterations/{number:04d}", target)
    for name in ("evaluation.json", "update.json", "publish.json"):
        path = target / name
        data = json.loads(path.read_text())
        if isinstance(data, dict) and "iteration" in data:
            path.write_text(json.dumps({**data, "iteration": to}))


def prompts(work: Path, quick: bool) -> list[Row]:
    """An iteration at two sizes, with the trainer in a separate process."""
    from loop import Ours, _shape
    from sightline_cli.processes import Processes
    from sightline_playground.export import export

    export(work / "test", split="test", count=8, seed=100)
    cpu: dict[int, float] = {}
    memory: dict[int, float] = {}
    with Processes(work / "services") as processes:
        shape = _shape("playground", work, None, quick=quick)
        processes.start("sampler", [f"engine.model={shape.model}", "engine.threads=1"])
        processes.start("scorer", [f"models.clip.source=local-dir:{shape.clip}", "triton.threads=1"])
        at = processes.wait("sampler", seconds=600).grpc, processes.wait("scorer", seconds=600).grpc
        for size in (64, 256, 1024 if quick else 4096):
            each = work / str(size)
            each.mkdir()
            shutil.copytree(work / "test", each / "test")
            ours = Ours(_shape("playground", each, size, quick=quick), each, at)
            before = cpu_seconds()
            next(ours.iterations("2", 2, range(1)))
            cpu[size], memory[size] = cpu_seconds() - before, peak_memory_mib()
    del cpu[64], memory[64]  # it warmed up
    return [
        _slope("iteration_cpu_ms_a_prompt", "CPU-ms", 1e3, cpu),
        _slope("iteration_peak_kib_a_prompt", "KiB", 1024, memory),
    ]


def store(work: Path, quick: bool) -> list[Row]:
    """A full store of images in memory."""
    from sightline_chassis.image_store import ImageStore
    from sightline_chassis.sections import ImageStoreSettings

    cpu, calls = {}, 2_000
    for size in (1_000, 10_000 if quick else 100_000):
        full = ImageStore(ImageStoreSettings(max_images=size, max_bytes=1 << 30))
        for number in range(size):
            full.keep(number.to_bytes(64, "big"))
        before = time.process_time()
        for number in range(size, size + calls):
            full.keep(number.to_bytes(64, "big"))
        cpu[size] = (time.process_time() - before) / calls
        assert len(full) == size
    (small, cheap), (large, dear) = sorted(cpu.items())
    return [
        Row(f"store_put_cpu_us_{small}", 1e6 * cheap, "CPU-us", "lower"),
        Row(f"store_put_cpu_us_{large}", 1e6 * dear, "CPU-us", "lower"),
    ]


if __name__ == "__main__":
    main()
