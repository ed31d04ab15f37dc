"""The sampler: cost of a decoding step, the GPU's share of it, and tokens/s of the engine at K = 1 to 64."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llava
import models
import peft
import report
import torch
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import user_turn
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import Conversation, EncodedImage, SampleWork
from sightline_sampler.engines.local import selfcheck
from sightline_sampler.engines.local.features import Features
from sightline_sampler.engines.local.lane import Lane
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import ImageFeatures, Prefiller
from sightline_sampler.engines.local.prompts import PromptBuilder
from sightline_sampler.engines.local.rows import Request
from sightline_sampler.engines.local.teacher import Teacher
from sightline_sampler.engines.local.transformers import TransformersEngine, _Loaded
from sightline_sampler.engines.local.weights import Adapter, Weights
from sightline_sampler.settings import EngineSettings, SamplerLimits

_TOGETHER = 16  # prompts of one prefill


class _Lease:
    def __init__(self, version: int = 0) -> None:
        self.version = version

    def bind(self) -> int:
        return self.version


def lane(base: BaseModel, *, prompts: int, rows: int, tokens: int, model: Any = None, version: int = 0) -> Lane:
    """A lane of prefilled prompts of 617 tokens with `rows` candidates each, whose first tokens are not drawn yet."""
    prefiller = Prefiller(base, ImageFeatures(1 << 28))
    made = Lane(base, version)
    with torch.inference_mode():
        for first in range(0, prompts, _TOGETHER):
            numbers = range(first, min(first + _TOGETHER, prompts))
            prepared = [models.prompt(base.model, number) for number in numbers]
            if prefiller.sharing is None and prepared[0].pixels:
                two, one = ([prepared[0]] * count for count in (2, 1))
                prefiller.sharing = Features(base.model, prefiller.joined(two), prefiller.joined(one))
            prefix = prefiller.run(model or base.model, prepared, 0)
            requests = [
                Request(
                    SampleWork("gpu", Conversation(()), seeds.derive(number, rows), SamplingParams(), _Lease()), one,
                    tokens, asyncio.Queue(),
                )
                for number, one in zip(numbers, prepared, strict=True)
            ]  # fmt: skip
            made.add(prefix, list(range(len(requests))), requests, [rows] * len(requests))
    return made


def adapter(model: Any, version: int, *, rank: int = 16) -> Adapter:
    """A random LoRA on all layers of the language model, as an update publishes one."""
    generator = torch.Generator().manual_seed(version)
    expression = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    tensors = {}
    for name, module in model.named_modules():
        module = getattr(module, "base_layer", module)
        if isinstance(module, torch.nn.Linear) and "language_model" in name and "lora" not in name:
            name = name.removesuffix(".base_layer")
            tensors[f"{name}.lora_A.weight"] = 0.01 * torch.randn(rank, module.in_features, generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.01 * torch.randn(module.out_features, rank, generator=generator)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=expression)
    config.inference_mode = True
    return Adapter(version, config, tensors, {})


class Built(TransformersEngine):
    """The engine on an existing model."""

    def __init__(self, base: BaseModel, settings: EngineSettings, limits: SamplerLimits) -> None:
        super().__init__(settings, limits)
        self.given = base

    def _load(self) -> _Loaded:
        prefiller = Prefiller(self.given, ImageFeatures(256 << 20))
        weights = Weights(self.given)
        teacher = Teacher(self.given, prefiller, weights)
        return _Loaded(self.given, PromptBuilder(self.given), prefiller, weights, teacher)


def work(to: report.Report) -> None:
    """Measure LLaVA's steps and engine, then Qwen's steps."""
    began = time.monotonic()
    model = models.build(models.llava_config(dry=to.dry), to.device, to.dtype)
    report.sync()
    with tempfile.TemporaryDirectory() as scratch:
        from transformers import AutoProcessor

        directory = llava.make(Path(scratch) / "small", vocabulary=models.vocabulary(dry=to.dry))
        processor = AutoProcessor.from_pretrained(directory)
        base, plain = (models.base(model, processor, directory, graphs=graphs) for graphs in (True, False))
        to.row("build_llava", time.monotonic() - began, "s", "lower", parameters=model.num_parameters())
        with to.part("self_check"):
            _self_check(to, base)
        shapes = ((1, 8), (4, 8)) if to.dry else ((1, 8), (8, 8), (64, 8))
        for prompts, rows in shapes:
            for name, arm in (("", base), ("_plain", plain)):
                with to.part(f"step_llava_{prompts}x{rows}{name}"):
                    _step(to, arm, f"llava_{prompts}x{rows}{name}", prompts, rows)
        with to.part("engine_llava"):
            asyncio.run(_engine(to, base))
        with to.part("engine_llava_plain"):
            asyncio.run(_plain_engine(to, plain))
    weights = Weights(base)
    weights.install(SimpleNamespace(version=9), adapter(model, 9), Path())  # type: ignore[arg-type]
    prompts, rows = shapes[-1]
    for name, arm in (("", base), ("_plain", plain)):
        with to.part(f"step_llava_adapter{name}"):
            _step(to, arm, f"llava_{prompts}x{rows}_adapter{name}", prompts, rows, weights.use(9), 9)
    del weights, model, base, plain, arm
    report.free()
    with to.part("step_qwen2_5_vl"):
        base = models.base(models.build(models.qwen_config(dry=to.dry), to.device, to.dtype))
        _step(to, base, f"qwen2_5_vl_{prompts}x{rows}", prompts, rows)


def _self_check(to: report.Report, base: BaseModel) -> None:
    """Differences between the engine and the model's plain forward pass, with the limits of the self-check."""
    prefiller = Prefiller(base, ImageFeatures(1 << 28))
    from PIL import Image

    with torch.inference_mode():
        image = Image.effect_noise((96, 96), 40).convert("RGB")
        probe = selfcheck.TrialPrompt(base, PromptBuilder(base), [image], "probe")
        found = {
            "attention": selfcheck.attention_error(base, probe),
            "decoding": selfcheck.decode_error(base, prefiller, probe),
        }
    limit = selfcheck.TOLERANCE[base.dtype]
    for name, value in found.items():
        to.row(f"self_check_{name}", value, "nats", "lower", limit, "a plain forward", dtype=str(base.dtype))


def _step(
    to: report.Report, base: BaseModel, name: str, prompts: int, rows: int, model: Any = None, version: int = 0
) -> None:
    """Measure the milliseconds of a step, its kernels, and the share of it in which the GPU is busy."""
    count = 3 if to.dry else 12
    began = time.monotonic()
    made = lane(base, prompts=prompts, rows=rows, tokens=4 * count + 8, model=model, version=version)
    report.sync()
    prefill = time.monotonic() - began
    net = model if model is not None else base.model

    def step() -> None:
        with torch.inference_mode():
            made.sample()
            made.forward(net)

    took = report.median(report.seconds_of(step, times=count, warmup=4))
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if to.device == "cuda":
        kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(2):
            step()
        report.sync()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    if to.device != "cuda":
        events = [event for event in profile.events() if event.name.startswith("aten::")]
    busy = sum(event.time_range.elapsed_us() for event in events) / 2e6
    slowest: dict[str, float] = {}
    for event in events:
        slowest[event.name[:70]] = slowest.get(event.name[:70], 0.0) + event.time_range.elapsed_us() / 2e3
    top = dict(sorted(slowest.items(), key=lambda item: -item[1])[:6])
    to.row(
        f"step_{name}", 1e3 * took, "ms", "lower", launches=len(events) // 2, gpu_ms=round(1e3 * busy, 3),
        gpu_share=round(busy / took, 3), tokens_per_second=round(prompts * rows / took, 1),
        prefill_seconds=round(prefill, 3), recordings=len(base.graphs or ()),
        top_ms={k: round(v, 3) for k, v in top.items()},
    )  # fmt: skip


async def _engine(to: report.Report, base: BaseModel) -> None:
    """Measure the whole engine: tokens/s at each K, with and without an adapter, and a policy swap under load."""
    limits = SamplerLimits(max_image_pixels=10**7)
    engine = Built(base, EngineSettings(model=str(base.directory), preprocess_threads=8), limits)
    await engine.start()
    try:
        tokens = 4 if to.dry else 64
        shapes = ((1, 2), (4, 2)) if to.dry else ((1, 128), (8, 64), (16, 32), (64, 8))
        await _sampled(engine, 2, 2, 2, 0, 10**6)
        for k, prompts in shapes:
            with to.part(f"engine_k{k}"):
                if to.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                wall, made, _ = await _sampled(engine, prompts, k, tokens, 0, 1000 * k)
                peak = torch.cuda.max_memory_allocated() / 2**30 if to.device == "cuda" else 0.0
                to.row(
                    f"sampler_k{k}", made / wall, "tokens/s", prompts=prompts, tokens=tokens, peak_gib=round(peak, 2)
                )
        with to.part("alone_or_together"):
            k, prompts = (2, 2) if to.dry else (8, 4)
            _, _, together = await _sampled(engine, prompts, k, tokens, 0, 77_000)
            same = total = 0
            for number in range(prompts):
                _, _, alone = await _sampled(engine, 1, k, tokens, 0, 77_000 + number)
                for a, b in zip(alone[0], together[number], strict=True):
                    same += int((a == b).sum())
                    total += len(a)
            to.row("same_ids_alone_and_together", same / total, "share", tokens=total)
        for version in (1, 2):
            under_load = asyncio.create_task(_sampled(engine, *shapes[1][::-1], tokens, version - 1, 5000 * version))
            await asyncio.sleep(0.05 if to.dry else 0.5)
            took = await _install(engine, version)
            wall, made, _ = await under_load
            to.row(f"swap_under_load_{version}", took, "s", "lower", tokens_per_second=round(made / wall, 1))
        for k, prompts in shapes[1:2]:
            wall, made, _ = await _sampled(engine, prompts, k, tokens, 2, 9000)
            to.row(f"sampler_k{k}_adapter", made / wall, "tokens/s", prompts=prompts, tokens=tokens)
        for version in (1, 2):
            await engine.retire(version)
    finally:
        await engine.stop()


async def _install(engine: Built, version: int) -> float:
    """Install a random adapter between two steps; returns the seconds that it took."""
    loaded, loop = engine._need()
    read = adapter(loaded.base.model, version)
    began = time.monotonic()
    manifest: Any = SimpleNamespace(version=version)
    await asyncio.wrap_future(loop.call(lambda: loaded.weights.install(manifest, read, Path())))
    return time.monotonic() - began


async def _plain_engine(to: report.Report, base: BaseModel) -> None:
    """Measure tokens/s of the engine without fused attention and graphs, with and without an adapter."""
    settings = EngineSettings(model=str(base.directory), preprocess_threads=8, gpu_graphs=False)
    engine = Built(base, settings, SamplerLimits(max_image_pixels=10**7))
    await engine.start()
    try:
        k, prompts, tokens = (2, 4, 4) if to.dry else (8, 64, 64)
        await _sampled(engine, 2, 2, 2, 0, 10**6)
        for version, name in ((0, "plain"), (3, "adapter_plain")):
            if version:
                await _install(engine, version)
            wall, made, _ = await _sampled(engine, prompts, k, tokens, version, 9000 + version)
            to.row(f"sampler_k{k}_{name}", made / wall, "tokens/s", prompts=prompts, tokens=tokens)
        await engine.retire(3)
    finally:
        await engine.stop()


async def _sampled(engine: Built, prompts: int, k: int, tokens: int, version: int, seed: int) -> tuple[float, int, Any]:
    """Wall seconds, tokens, and ids by prompt and candidate; every prompt has its own image."""
    files = [llava.picture(seed + number) for number in range(prompts)]
    began = time.monotonic()

    async def one(number: int) -> list[Any]:
        image = EncodedImage(files[number], hashlib.sha256(files[number]).hexdigest())
        given = SampleWork(
            f"{seed}-{number}", Conversation(user_turn(llava.prompt(), 1), (image,)),
            seeds.derive(seed + number, k), SamplingParams(max_tokens=tokens), _Lease(version),
        )  # fmt: skip
        found: dict[int, Any] = {}
        async for event in engine.sample(given):
            if hasattr(event, "token_ids"):
                found[event.index] = event.token_ids
        return [found[index] for index in sorted(found)]

    ids = await asyncio.gather(*(one(number) for number in range(prompts)))
    return time.monotonic() - began, sum(len(row) for rows in ids for row in rows), ids


if __name__ == "__main__":
    report.run("decode", work)
