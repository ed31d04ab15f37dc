"""Identify the card, and measure the two rates that everything else is compared with."""

from __future__ import annotations

import platform
import subprocess
import sys

import report
import torch


def work(to: report.Report) -> None:
    """Measure name and versions, and the rates of a large matrix product and of a copy."""
    smi = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip() if to.device == "cuda" else ""  # fmt: skip
    from importlib.metadata import version

    versions = {}
    for name in (
        "torch",
        "transformers",
        "trl",
        "peft",
        "open_clip_torch",
        "datasets",
        "grpcio",
        "protobuf",
        "pydantic",
    ):
        try:
            versions[name] = version(name)
        except Exception as error:
            versions[name] = f"missing ({type(error).__name__})"
    to.row(
        "memory", torch.cuda.mem_get_info()[1] / 2**30 if smi else 0.0, "GiB",
        card=smi, python=sys.version.split()[0], kernel=platform.release(), **versions,
    )  # fmt: skip
    size = 256 if to.dry else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=to.device, dtype=dtype) for _ in range(2))
        took = report.seconds_of(lambda a=a, b=b: a @ b, times=10, warmup=3)  # type: ignore[misc]
        to.row(f"matmul_{name}", 2 * size**3 / report.median(took) / 1e12, "TFLOP/s", size=size)
    source = torch.randn(2**20 if to.dry else 2**30, device=to.device)
    target = torch.empty_like(source)
    took = report.seconds_of(lambda: target.copy_(source), times=10)
    to.row("copy", 8 * source.numel() / report.median(took) / 1e12, "TB/s")
    tiny = torch.zeros(1, device=to.device)
    took = report.seconds_of(lambda: [tiny.add_(1) for _ in range(1000)], times=5)
    to.row("launch", 1e3 * report.median(took), "us", "lower", count=1000)


if __name__ == "__main__":
    report.run("card", work)
