"""Measure the scorer's service from JPEG bytes: its rate relative to the towers', and the CPU cost of a request."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from pathlib import Path

import report
import torch

TARGET = 0.9


def work(to: report.Report) -> None:
    """Measure one service, and several before one Triton, in fp16.

    Captions are known and images new, so that the image tower does the work.
    """
    from scorer_service import side_by_side
    from scorer_work import Requests, model_directory, photos

    with tempfile.TemporaryDirectory(prefix="sightline-gpu-") as scratch:
        work_in = Path(scratch)
        name = "tiny" if to.dry else "ViT-L-14-336"
        if to.device == "cuda":
            torch.set_default_device("cuda")  # the initial weights are drawn on the GPU, not by one CPU thread
        directory = model_directory(name, work_in)
        torch.set_default_device("cpu")
        report.free()
        settings = [
            f"models.default.precision={'fp16' if to.device == 'cuda' else 'fp32'}",
            f"triton.image_batch={4 if to.dry else 128}", "triton.text_batch=256", "triton.text_batch_tokens=0",
            f"triton.device={to.device}", "admission.max_concurrent=1024", "admission.max_queue=4096",
        ]  # fmt: skip
        cost = _decoding(photos()[: 8 if to.dry else 64], 64 if to.dry else 336)
        to.row("jpeg_decode_resize", 1e3 * cost, "CPU ms", "lower", against="Pillow, one thread")
        number = 16 if to.dry else 1500
        arms = {"off": ("off", 1), "off_2_services": ("off", 2)}
        if not to.dry:
            arms = {"off": ("off", 1), "cuda_graphs": ("cuda_graphs", 1), "off_4_services": ("off", 4)}
        for name_of, (graphs, services) in arms.items():
            with to.part(f"service_{name_of}"):
                began = time.monotonic()
                with side_by_side(
                    work_in / f"serving-{name_of}", directory, services, *settings, f"triton.gpu_graphs='{graphs}'"
                ) as service:
                    ready = time.monotonic() - began
                    requests = Requests(name, seed=1)
                    same = requests.cold(1)[0].texts

                    def fresh(count: int) -> list[object]:
                        found = requests.cold(count)  # noqa: B023
                        return [type(one)(one.image, same) for one in found]  # noqa: B023

                    service.turn(fresh(max(8, number // 6)), 256)  # type: ignore[arg-type]
                    turn = service.turn(fresh(number), 512 if not to.dry else 8)  # type: ignore[arg-type]
                done = turn.outcomes["OK"]
                rate = done / turn.wall
                tower = _tower_rate(to.out)
                spent = (turn.service + turn.triton) / max(1, done)
                to.row(
                    f"service_images_{name_of}", rate, "images/s", ready_seconds=round(ready, 1),
                    services=services, cores=os.cpu_count(), outcomes=dict(turn.outcomes),
                    client_cpu_ms=1e3 * turn.client / max(1, done),
                    service_cpu_ms=1e3 * turn.service / max(1, done), triton_cpu_ms=1e3 * turn.triton / max(1, done),
                )  # fmt: skip
                to.row(
                    f"service_over_tower_{name_of}", rate / tower if tower else 0.0, "ratio", "higher", TARGET,
                    "the image tower's best rate alone", tower=tower,
                )  # fmt: skip
                to.row(
                    f"service_cpu_beyond_decoding_{name_of}", 1e3 * (spent - cost), "CPU ms", "lower",
                    against="decode and resize, which are the work itself",
                )  # fmt: skip


def _decoding(files: list[bytes], side: int) -> float:
    """CPU seconds of a JPEG's decoding and open_clip's resize."""
    from PIL import Image

    began = time.thread_time()
    for file in files:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        scale = side / min(image.size)
        image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return (time.thread_time() - began) / len(files)


def _tower_rate(out: Path) -> float:
    rates = [0.0]
    for line in (out / "towers.jsonl").read_text().splitlines() if (out / "towers.jsonl").exists() else ():
        row = json.loads(line)
        if row["name"].startswith("gpu_tower_image_fp16") and "value" in row:
            rates.append(row["value"])
    return max(rates)


if __name__ == "__main__":
    report.run("service", work)
