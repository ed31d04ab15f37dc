"""Compare the sampler with `generate`: `make bench-sampler`, or `python benchmarks/sampler.py [--quick]`.

There are four ways to get K candidates for an image and a prompt. All use the same random-weight LLaVA (see `llava.py`)
in one run on the same cores, with one PyTorch thread each; every call has a new image:

- ours: `SamplerClient.sample` on a sampler in a separate process, through gRPC; client and server are charged;
- generate: `model.generate(num_return_sequences=K)`, as in transformers' documentation;
- separate: K calls of `generate` with one candidate each;
- loop: the engine's decoding without the service: no gRPC, no queue, no threads.

On a GPU the model has the shape of LLaVA-1.5-7B, and wall clock replaces CPU seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import harness
import llava
import numpy as np
import torch
import transformers
from PIL import Image
from sightline.sampler import AsyncSamplerClient, SamplerClient
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import user_turn
from sightline_cli.processes import Processes
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import Conversation, SampleWork
from sightline_sampler.engines.local import selfcheck
from sightline_sampler.engines.local.lane import Lane
from sightline_sampler.engines.local.model import load_base
from sightline_sampler.engines.local.prefill import ImageFeatures, Prefiller
from sightline_sampler.engines.local.prompts import PromptBuilder
from sightline_sampler.engines.local.rows import Request
from torch.utils.flop_counter import FlopCounterMode

PROMPT = llava.prompt()
CUDA = torch.cuda.is_available()
CLOCK: Literal["cpu", "wall"] = "wall" if CUDA else "cpu"


class Base:
    """A lease on the base model."""

    def bind(self) -> int:
        """Version 0."""
        return 0


class Generate:
    """Candidates by transformers, used as in its documentation."""

    def __init__(self, directory: Path) -> None:
        device = "cuda" if CUDA else "cpu"
        dtype = torch.float16 if CUDA else torch.float32
        model = transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=dtype)
        self.model = model.eval().to(device)
        self.processor = transformers.AutoProcessor.from_pretrained(directory)

    def inputs(self, image: bytes) -> Any:
        """The processor's output for an image and the prompt."""
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        return self.processor(images=[picture], text=[text], return_tensors="pt").to(
            self.model.device, self.model.dtype
        )

    @torch.inference_mode()
    def sample(self, image: bytes, count: int, tokens: int) -> list[str]:
        """K candidates of one call."""
        batch = self.inputs(image)
        out = self.model.generate(
            **batch, do_sample=True, num_return_sequences=count, max_new_tokens=tokens, top_k=0, pad_token_id=0
        )
        new = out[:, batch["input_ids"].shape[1] :]
        assert new.shape == (count, tokens), "a candidate ended early: the arms would do unequal work"
        return list(self.processor.batch_decode(new, skip_special_tokens=True))

    @torch.inference_mode()
    def reference(self, image: bytes, seed: int, tokens: int) -> list[int]:
        """Sample one candidate alone, token by token on a growing cache, as the sampler promises for this seed."""
        batch, ids = self.inputs(image), list[int]()
        uniforms = np.random.Generator(np.random.Philox(key=seed)).random(tokens)
        out = self.model(**batch, use_cache=True)
        for uniform in uniforms:
            z = out.logits[0, -1].double()
            z[[0, 1, 3]] = -torch.inf  # pad, begin, image: never drawn
            cumulated = torch.softmax(z, dim=-1).cumsum(dim=-1)
            ids.append(int(torch.searchsorted(cumulated, float(uniform), right=True)))
            step = torch.tensor([[ids[-1]]], device=self.model.device)
            out = self.model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
        return ids


class BareLoop:
    """The engine without the service around it."""

    def __init__(self, directory: Path) -> None:
        self.base = load_base(str(directory), device="auto", dtype="auto", chat_template=None)
        self.builder, self.prefiller = PromptBuilder(self.base), Prefiller(self.base, ImageFeatures(256 << 20))
        selfcheck.check(self.base, self.builder, self.prefiller)

    @torch.inference_mode()
    def sample(self, image: bytes, count: int, tokens: int) -> list[str]:
        """K candidates of one prompt."""
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        turns = user_turn(PROMPT, 1)
        prepared = self.builder.prepare(turns, [picture], str(hash(image)))
        work = SampleWork("", Conversation(turns), seeds.derive(0, count), SamplingParams(max_tokens=tokens), Base())
        lane = Lane(self.base, 0)
        prefix = self.prefiller.run(self.base.model, [prepared], 0)
        lane.add(prefix, [0], [Request(work, prepared, tokens, asyncio.Queue())], [count])
        texts = []
        while len(lane):
            for _, finished in lane.sample():
                assert not isinstance(finished, BaseException)
                texts.append(self.base.tokenizer.decode(finished.token_ids.tolist(), skip_special_tokens=True))
            if len(lane):
                lane.forward(self.base.model)
        return texts


def pictures() -> Iterator[bytes]:
    """Images that are new to all caches."""
    return (llava.picture(seed) for seed in itertools.count())


def over(samples: dict[str, list[harness.Sample]], arm: str, against: str) -> tuple[float, dict[str, Any]]:
    """Ratio of the cost of `arm` to that of `against`."""
    value, detail = harness.ratio(samples[arm], samples[against], CLOCK)
    return value, dict(detail)


def per_candidate(samples: list[harness.Sample], candidates: int) -> dict[str, float]:
    """Medians of a turn, by candidate."""
    wall = statistics.median(sample.wall for sample in samples)
    cpu = statistics.median(sample.cpu for sample in samples)
    return {"candidates_per_s": round(candidates / wall, 2), "cpu_s_per_candidate": round(cpu / candidates, 4)}


def measure(address: str, directory: Path, quick: bool, done: Callable[[list[harness.Row]], None]) -> None:
    """Measure all figures except memory, the most important first; call `done` with the figures so far."""
    fresh, rows = pictures(), list[harness.Row]()
    generate, loop = Generate(directory), BareLoop(directory)
    with SamplerClient(address, timeout=600) as client:

        def ours(image: bytes, count: int, tokens: int) -> None:
            found = client.sample(image, PROMPT, count, max_tokens=tokens)
            assert all(len(c.token_ids) == tokens for c in found.candidates)

        def against_generate(count: int, tokens: int) -> harness.Row:
            calls = 2 if count * tokens <= 128 else 1  # a turn of about a second

            def turn(sample: Callable[[bytes, int, int], object]) -> None:
                for _ in range(calls):
                    sample(next(fresh), count, tokens)

            arms = {"ours": lambda: turn(ours), "generate": lambda: turn(generate.sample)}
            samples = harness.interleave(arms, rounds=1 if quick else 3, warmup=0)
            value, detail = over(samples, "generate", "ours")
            detail |= {name: per_candidate(found, count * calls) for name, found in samples.items()}
            target = {(8, 16): 1.7, (8, 64): 1.3}.get((count, tokens))
            name = f"generate_over_ours_k{count}_t{tokens}"
            return harness.Row(name, value, "ratio", "higher", target, "model.generate", detail)

        def mixed(sample: Callable[[bytes, int, int], object]) -> None:
            for tokens in (16, 64):
                sample(next(fresh), 8, tokens)

        for sample in (ours, generate.sample, loop.sample):
            sample(next(fresh), 8, 4)  # warm
        rows += [against_generate(8, tokens) for tokens in (16, 64)]
        arms = {"service": lambda: mixed(ours), "loop": lambda: mixed(loop.sample)}
        samples = harness.interleave(arms, rounds=1 if quick else 5, warmup=0)
        value, detail = over(samples, "service", "loop")
        rows.append(
            harness.Row("service_over_loop", value, "ratio", "lower", 1.05, "the engine without service", detail)
        )
        rows.append(bound(loop, next(fresh), quick))
        rows.append(same_ids(client, generate, fresh, 1 if quick else 4))
        done(rows)
        if not quick:
            for count, tokens in itertools.product((4, 16), (16, 64)):
                rows.append(against_generate(count, tokens))
                done(rows)
            arms = {"ours": lambda: ours(next(fresh), 8, 16), "separate": lambda: separately(generate, next(fresh), 16)}
            value, detail = over(harness.interleave(arms, rounds=2, warmup=0), "separate", "ours")
            name, against = "separate_over_ours_k8_t16", "8 calls of model.generate"
            rows.append(harness.Row(name, value, "ratio", "higher", None, against, detail))
            done(rows)
    if not quick:
        rows.append(concurrency(address, fresh))
        rows.append(memory(directory))
        done(rows)


def bound(loop: BareLoop, image: bytes, quick: bool) -> harness.Row:
    """The engine's decoding, K = 8 and 64 tokens, over the time that a matrix product takes for the FLOPs that it needs
    (tower and prompt once, each new token once, by torch's counter)."""
    with FlopCounterMode(display=False) as flops:
        loop.sample(image, 8, 64)
    needed, rate = float(flops.get_total_flops()), harness.gemm_rate()
    fresh = pictures()
    arms = {"loop": lambda: loop.sample(next(fresh), 8, 64)}
    samples = harness.interleave(arms, rounds=1 if quick else 3, warmup=0)
    took = statistics.median(sample.cpu for sample in samples["loop"])
    rate = max(rate, harness.gemm_rate())
    detail = {"cpu_seconds": round(took, 3), "needed_tflop": needed / 1e12, "gemm_gflop_per_second": rate / 1e9}
    return harness.Row("sampler_over_bound", took * rate / needed, "ratio", "lower", None, "a matrix product", detail)


def separately(generate: Generate, image: bytes, tokens: int) -> None:
    """Compare eight calls of one candidate with one request for eight, on one image."""
    for _ in range(8):
        generate.sample(image, 1, tokens)


def same_ids(client: SamplerClient, generate: Generate, fresh: Iterator[bytes], images: int) -> harness.Row:
    """Count candidates whose ids equal those of a plain loop that runs each alone."""
    same = total = 0
    for image in itertools.islice(fresh, images):
        for candidate in client.sample(image, PROMPT, 8, max_tokens=16, seed=total).candidates[::2]:
            total += 1
            same += candidate.token_ids.tolist() == generate.reference(image, candidate.seed, 16)
    detail = {"candidates": total, "same": same, "tokens": 16 * total}
    return harness.Row(
        "same_ids_as_plain_loop", same / total, "share", "higher", 1.0, "a plain loop of one row", detail
    )


def concurrency(address: str, fresh: Iterator[bytes]) -> harness.Row:
    """Compare one caller with eight at once, at K = 8 and 16 tokens."""

    async def ask(callers: int) -> None:
        async with AsyncSamplerClient(address, timeout=600) as client:
            calls = (client.sample(next(fresh), PROMPT, 8, max_tokens=16) for _ in range(callers))
            await asyncio.gather(*calls)

    def one_by_one() -> None:
        for _ in range(8):
            asyncio.run(ask(1))

    samples = harness.interleave({"1": one_by_one, "8": lambda: asyncio.run(ask(8))}, rounds=2, warmup=0)
    value, detail = harness.ratio(samples["1"], samples["8"], CLOCK)
    detail = {**detail, **{f"callers_{n}": per_candidate(found, 64) for n, found in samples.items()}}
    return harness.Row("one_over_eight_callers", value, "ratio", "higher", None, "one caller, K = 8, 16 tokens", detail)


def memory(directory: Path) -> harness.Row:
    """Peak memory of K = 16 candidates of 64 tokens over that of one with one token, each in its own process."""
    found = {}
    for way in ("loop", "generate"):
        command = [sys.executable, __file__, "--peak", way, "--model", str(directory)]
        found[way] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    detail = {f"{way}_mib": round(value, 1) for way, value in found.items()}
    # There is no ratio, because ours may stay below the peak of loading the model.
    value = found["generate"] - found["loop"]
    return harness.Row("generate_less_ours_memory_k16_t64", value, "MiB", "higher", None, "model.generate", detail)


def peak(way: str, directory: Path) -> None:
    """Print by how many MiB K = 16 candidates of 64 tokens raise the peak memory."""
    arm: Generate | BareLoop = Generate(directory) if way == "generate" else BareLoop(directory)
    images = pictures()

    def highest() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if CUDA else harness.peak_memory_mib()

    arm.sample(next(images), 1, 1)
    before = highest()
    arm.sample(next(images), 16, 64)
    print(highest() - before)


def _write(rows: list[harness.Row], directory: Path) -> None:
    harness.write("sampler", rows, directory=directory)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="measure only K = 8, one turn each, and write nothing")
    parser.add_argument("--model", type=Path, help="use this existing model")
    parser.add_argument("--peak", choices=("loop", "generate"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if options.peak:
        peak(options.peak, options.model)
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.model or llava.make(Path(scratch) / "model", size="large" if CUDA else "small")
        where = Path(scratch) if options.quick else harness.RESULTS
        with Processes(Path(scratch) / "logs") as processes:
            processes.start("sampler", [f"engine.model={directory}", "engine.threads=1"])
            address = processes.wait("sampler", seconds=600).grpc
            shares = harness.pss_mib(json.loads((Path(scratch) / "logs/sampler.json").read_text())["pid"])
            at_rest = harness.Row(
                "sampler_pss_mib", sum(shares.values()), "MiB", "lower", 700, "after its start", shares
            )
            measure(address, directory, options.quick, lambda rows: _write([*rows, at_rest], where))


if __name__ == "__main__":
    main()
