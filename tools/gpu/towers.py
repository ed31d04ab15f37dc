"""Measure CLIP's towers alone: images/s and MFU in half precision, plain, compiled and as CUDA graphs, by batch."""

from __future__ import annotations

import time
from typing import Any

import report
import torch
from sightline_scorer.triton import half
from sightline_scorer.triton.towers import ImageTower, TextTower, on_device

ARCHITECTURE = "ViT-L-14-336"
TARGET_MFU = 0.6


def clip(
    to: report.Report,
    device: str,
    precision: str,
    *,
    layers: int | None = None,
    graphs: str = "off",
    quick: bool = False,
) -> Any:
    """Image tower, text tower, side of an image, and the batch's facts; random weights. `quick`: OpenAI's QuickGELU."""
    import copy

    import open_clip
    from open_clip.factory import convert_weights_to_lp

    config = copy.deepcopy(open_clip.get_model_config("ViT-B-32" if to.dry else ARCHITECTURE))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if to.dry:
        vision |= {"layers": 2, "width": 64, "image_size": 64, "head_width": 32}
        text |= {"layers": 2, "width": 64, "heads": 2}
    if layers:
        vision["layers"] = text["layers"] = layers
    cast = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    made = []
    for kind in (ImageTower, TextTower):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config, quick_gelu=quick, cast_dtype=None if precision == "fp32" else cast).eval()
        if precision != "fp32":
            convert_weights_to_lp(model, dtype=cast)
            if device != "cpu":
                half.quicken(model)
        facts = {
            "preprocess": {"mean": [0.48, 0.45, 0.4], "std": [0.27, 0.26, 0.28]},
            "image_height": vision["image_size"], "image_width": vision["image_size"], "trim_padding": True,
            "gpu_graphs": graphs, "context_length": text["context_length"], "batch": 512,
        }  # fmt: skip
        made.append(kind(model.to(device), facts, torch.device(device)))
    return made[0], made[1], vision["image_size"], facts


def texts(count: int, length: int = 16) -> torch.Tensor:
    """Captions as token ids."""
    ids = torch.randint(1, 40000, (count, length), dtype=torch.int32)
    ids[:, -1] = 49407
    return ids


def flops(tower: Any, size: int, device: str) -> float:
    """FLOPs of one image, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=device)
    # The counter knows fused attention kernels, but not MultiheadAttention's fast path, which is therefore switched off
    # while counting.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower.encode(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def work(to: report.Report) -> None:
    """Measure each way at each batch size."""
    batches = (2, 4) if to.dry else (32, 128, 512)
    peak = to.peak_tflops()
    best = 0.0
    # The compiled way comes first: it takes longest to build and must not exceed the step's time limit.
    ways = ("compile", "off", "cuda_graphs") if to.device == "cuda" else ("off",)
    for precision, way in [("fp16", way) for way in ways] + [("bf16", "off"), ("fp32", "off")]:
        with to.part(f"tower_{precision}_{way}"):
            image, text, size, facts = clip(to, to.device, precision, graphs=way)
            each = flops(image, size, to.device)
            began = time.monotonic()
            encode = on_device(image, torch.device(to.device), {**facts, "batch": batches[-1]})
            some = {"cuda_graphs": batches[:1], "compile": batches[1:]}.get(way, batches)
            for batch in some if precision == "fp16" else batches[1:2]:
                pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
                on = pixels.to(to.device)
                first = time.monotonic() - began
                whole = report.median(report.seconds_of(lambda: encode(pixels), times=5, warmup=2))  # noqa: B023
                with torch.inference_mode():
                    alone = report.median(report.seconds_of(lambda: image.encode(on), times=5, warmup=1))  # noqa: B023
                rate = batch / whole
                mfu = each * rate / peak / 1e12
                best = max(best, mfu if precision == "fp16" else 0.0)
                to.row(
                    f"tower_image_{precision}_{way}_b{batch}", rate, "images/s", mfu=round(mfu, 4),
                    gflop_an_image=each / 1e9, ms=1e3 * whole, plain_forward_ms=1e3 * alone,
                    until_ready_seconds=round(first, 2),
                )  # fmt: skip
                began = time.monotonic()
            if way == "off" and precision == "fp16":
                ids = texts(batches[-1])
                run = on_device(text, torch.device(to.device), {**facts, "batch": batches[-1]})
                took = report.median(report.seconds_of(lambda: run(ids)))  # noqa: B023
                to.row("tower_text_fp16", len(ids) / took, "texts/s", batch=len(ids), tokens=ids.shape[1])
    with to.part("tower_quick_gelu"):
        image, _, size, facts = clip(to, to.device, "fp16", quick=True)
        batch = batches[1]
        pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        encode = on_device(image, torch.device(to.device), {**facts, "batch": batch})
        took = report.median(report.seconds_of(lambda: encode(pixels), times=5, warmup=2))
        to.row(f"tower_image_fp16_quick_gelu_b{batch}", batch / took, "images/s", against="OpenAI's weights have it")
    to.row("clip_mfu", best, "share", "higher", TARGET_MFU, f"the card's bf16 product, {peak:.0f} TFLOP/s")


if __name__ == "__main__":
    report.run("towers", work)
