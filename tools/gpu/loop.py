"""Run the playground's loop with sampler, scorer and trainer taking turns on one card; measure the second iteration."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import report
import torch


def work(to: report.Report) -> None:
    """Run one iteration twice; the first warms up."""
    from sightline_cli.processes import Processes
    from sightline_playground.export import export

    spec = importlib.util.spec_from_file_location("bench_loop", report.ROOT / "benchmarks/loop.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = bench  # its dataclasses look themselves up
    spec.loader.exec_module(bench)
    weights, prompts = bench.PLAYGROUND, 8 if to.dry else 256
    shape = bench.Shape(weights / "llava", weights / "clip", tokens=64, prompts=prompts, batch=16)
    cuda = to.device == "cuda"
    with tempfile.TemporaryDirectory(prefix="sightline-gpu-") as directory:
        scratch = Path(directory)
        export(scratch / "test", split="test", count=8, seed=100)
        with Processes(scratch / "services") as processes:
            sampler = [f"engine.model={shape.model}", f"engine.device={to.device}", "engine.cache_share=0.2"]
            scorer = [f"models.clip.source=local-dir:{shape.clip}", f"triton.device={to.device}", "triton.threads=1"]
            processes.start("sampler", [*sampler, "engine.dtype=float32"])
            processes.start("scorer", [*scorer, "triton.start_timeout_seconds=300"])
            try:
                at = processes.wait("sampler", seconds=300).grpc, processes.wait("scorer", seconds=300).grpc
                ours = bench.Ours(shape, scratch, at)
                turns = ours.iterations("8", 8, range(2))
                for turn in range(2):
                    began = time.monotonic()
                    next(turns)
                    took = time.monotonic() - began
                    used = 0.0
                    if cuda:
                        free, total = torch.cuda.mem_get_info()
                        used = (total - free) / 2**30
                    to.row(
                        f"loop_iteration_{turn + 1}", took, "s", "lower", prompts=prompts, candidates=8,
                        pairs=ours.pairs["8"][-1], card_gib_in_use=round(used, 2),
                    )  # fmt: skip
            except BaseException:
                for name in ("sampler", "scorer"):
                    print(name, processes.tail(name, 12), flush=True)
                raise


if __name__ == "__main__":
    report.run("loop", work)
