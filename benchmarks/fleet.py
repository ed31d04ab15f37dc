"""Compare a fleet with one sampler: `make bench-fleet`, or `python benchmarks/fleet.py [--quick]`.

One, two and four samplers on the playground's model (each a separate process with one PyTorch thread) do the same work
in turn: the same prompts, seeds and images through `Fleet`, then a policy published to all and proved on each. CPU
seconds are the sum over the samplers and this process. `efficiency_N` is the work per CPU-second of N samplers against
that of one. As in the loop, each sampler has `sampling.max_in_flight` prompts in flight. Image features are not kept,
because in a run each prompt is new.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
from sightline.sampler import exact
from sightline_cli.processes import Processes
from sightline_trainer.dpo.update import UpdateProbe
from sightline_trainer.fleet import Fleet
from sightline_trainer.publish import publish
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.runs import RunDirectory
from sightline_trainer.sections import Publication
from sightline_trainer.serving import RunPolicies, ServedSampler

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "playground/weights"
FLEETS = (1, 2, 4)
CANDIDATES, IN_FLIGHT = 8, 32  # of each sampler
OUTAGE = 600.0
PROMPTS = 192


class Samplers:
    """A number of samplers on the playground's model.

    Args:
        number: how many samplers.
        directory: for their logs.
    """

    def __init__(self, number: int, directory: Path) -> None:
        self._all = [Processes(directory / f"{number}-{index}") for index in range(number)]
        for one in self._all:
            one.__enter__()
            one.start(
                "sampler", [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1", "engine.feature_cache_mib=0"]
            )
        self.target = "ipv4:" + ",".join(one.wait("sampler").grpc for one in self._all)

    def stop(self) -> None:
        """End them."""
        for one in self._all:
            one.stop()


async def sampled(target: str, prompts: list[Prompt], seed: int) -> int:
    """Candidates for all prompts; their tokens."""
    async with Fleet(target, policies=None, outage_seconds=OUTAGE, timeout=OUTAGE) as fleet:
        slots = asyncio.Semaphore(IN_FLIGHT * len(await fleet.members()))

        async def one(number: int, prompt: Prompt) -> int:
            async with slots:
                made = await fleet.sample(
                    prompt.images, prompt.asked(), CANDIDATES, seed=seed + number, max_tokens=48, policy=exact(0)
                )
                return sum(len(each.token_ids) for each in made.candidates)

        return sum(await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts))))


async def published(target: str, run: RunDirectory, prompts: dict[str, Prompt], version: int) -> None:
    """Publish a version of a run to all samplers, then return to the base model."""
    update = json.loads((run.iteration(1) / "update.json").read_text())
    policies = RunPolicies(run.policies, run.namespace)
    async with Fleet(target, policies=policies, outage_seconds=OUTAGE, timeout=OUTAGE) as fleet:
        probes = [UpdateProbe(**probe) for probe in update["probes"]]
        settings = Publication(quorum=1.0, files="pushed")
        await publish(fleet, policies, version=version, previous=0, probes=probes, prompts=prompts, settings=settings)

        async def forget(one: ServedSampler) -> None:
            await one.activate(0)
            await one.retire(version)

        await fleet.each(forget, "go back", 60)


def trained(samplers: Samplers, directory: Path) -> tuple[RunDirectory, dict[str, Prompt], int]:
    """A run of one iteration, whose policy is published again and again."""
    from sightline_playground.export import export
    from sightline_trainer.execute import execute
    from sightline_trainer.pools import load_prompts
    from sightline_trainer.recipe import Recipe

    export(directory / "train", split="align", count=PROMPTS, seed=1)
    export(directory / "test", split="test", count=8, seed=2)
    with Processes(directory / "scorer") as scorer:
        scorer.start("scorer", [f"models.clip.source=local-dir:{WEIGHTS / 'clip'}", "triton.threads=1"])
        recipe = Recipe.model_validate(
            {
                "name": "fleet",
                "model": str(WEIGHTS / "llava"),
                "iterations": 1,
                "threads": 1,
                "data": {
                    "train": str(directory / "train"),
                    "test": str(directory / "test"),
                    "prompts_per_iteration": 24,
                },
                "sampling": {"address": samplers.target, "candidates": 4},
                "reward": {"address": scorer.wait("scorer").grpc},
                "evaluation": {"prompts": 8, "greedy_prompts": 0, "questions": 0, "diverse_prompts": 0},
            }
        )
        run = RunDirectory(directory / "run")
        table = execute(recipe, run, lambda event: None)
    prompts = {prompt.id: prompt for prompt in load_prompts(directory / "train")}
    return run, prompts, int(table[-1]["policy_version"])


def main() -> int:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round; no file is written")
    options = parser.parse_args()
    rounds, count = (1, PROMPTS) if options.quick else (3, PROMPTS)
    with tempfile.TemporaryDirectory(prefix="sightline-fleet-") as temporary:
        directory = Path(temporary)
        fleets = {number: Samplers(number, directory) for number in FLEETS}
        try:
            run, prompts, version = trained(fleets[1], directory)
            drawn = list(itertools.islice(prompts.values(), count))
            tokens: dict[str, list[int]] = {f"sample_{number}": [] for number in FLEETS}

            def sample(number: int) -> None:
                turns = tokens[f"sample_{number}"]
                turns.append(asyncio.run(sampled(fleets[number].target, drawn, 1000 * len(turns))))

            def publish_to(number: int) -> None:
                asyncio.run(published(fleets[number].target, run, prompts, version))

            arms = {f"sample_{number}": partial(sample, number) for number in FLEETS}
            arms |= {f"publish_{number}": partial(publish_to, number) for number in FLEETS}
            turns = harness.interleave(arms, rounds=rounds)
        finally:
            for samplers in fleets.values():
                samplers.stop()
        if len({tuple(each) for each in tokens.values()}) != 1:
            raise RuntimeError(f"the same seeds gave other candidates on another fleet: {tokens}")
        rows = []
        for number, target in ((2, 0.9), (4, 0.85)):
            value, detail = harness.ratio(turns["sample_1"], turns[f"sample_{number}"])
            rows.append(harness.Row(f"efficiency_{number}", value, "ratio", "higher", target, "one sampler", detail))
        value, detail = harness.ratio(turns["publish_4"], turns["publish_1"])
        rows.append(harness.Row("publish_cpu_4_over_1", value, "ratio", "lower", 4.4, "one sampler", detail))
        harness.write("fleet", rows, **({"directory": directory} if options.quick else {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
