"""A fleet of samplers: each proves the policies, and candidates and pairs equal those of one, whichever dies."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from running import WEIGHTS, Services, small_recipe
from sampler_models import PROMPT, Running, make_adapter, make_llava, png
from sampler_models import running as sampler_running
from sightline.sampler import SamplerClient, exact
from sightline_cli.processes import Processes
from sightline_trainer.dpo.probing import UpdateProbe
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.fleet import Fleet
from sightline_trainer.publish import publish, sendable
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.runs import RunDirectory
from sightline_trainer.sections import Publication
from sightline_trainer.serving import RunPolicies

SCORES = ("images", "chosen_reward", "rejected_reward", "margin")


def pairs(run: RunDirectory) -> list[dict[str, Any]]:
    """All pairs, without columns that a batch's last bits change."""
    rows = []
    for path in sorted(run.root.glob("iterations/*/pairs.parquet")):
        rows += [{key: row[key] for key in row if key not in SCORES} for row in pq.read_table(path).to_pylist()]
    return rows


@pytest.fixture(scope="module")
def alone(playground: Path, services: Services, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The pairs of a run with one sampler of its own."""
    run = RunDirectory(tmp_path_factory.mktemp("alone") / "run")
    execute(Recipe.model_validate(small_recipe(services, playground)), run, lambda event: None)
    return pairs(run)


@pytest.mark.slow
def test_pairs_do_not_depend_on_the_samplers_nor_on_one_that_is_killed(
    playground: Path, services: Services, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        fleet = [stack.enter_context(Processes(tmp_path / f"sampler-{number}")) for number in range(3)]
        model = [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"]
        for one in fleet:
            one.start("sampler", model)
        found = [one.wait("sampler").grpc for one in fleet]
        tree = small_recipe(services, playground)
        tree["sampling"] = {**tree["sampling"], "address": "ipv4:" + ",".join(found)}
        killed: list[str] = []

        def observe(event: Event) -> None:
            """One dies in the first iteration's sampling and returns, another in the second's and stays away."""
            if event.stage == "sample" and event.done >= 5 and len(killed) < event.iteration:
                member = fleet[len(killed)]
                os.kill(json.loads((member.directory / "sampler.json").read_text())["pid"], signal.SIGKILL)
                member.wait_end("sampler")
                if not killed:
                    member.start("sampler", model, port=int(found[0].rpartition(":")[2]))
                    member.wait("sampler")
                killed.append(member.directory.name)

        run = RunDirectory(tmp_path / "fleet")
        table = execute(Recipe.model_validate(tree), run, observe)
        assert killed == ["sampler-0", "sampler-1"]
        assert pairs(run) == alone
        version = int(table[-1]["policy_version"])
        for address in (found[0], found[2]):
            with SamplerClient(address, run_id=run.namespace) as client:
                policy = client.policy()
                assert policy.version == version
                assert policy.arrival is not None
                assert policy.arrival.passed, "proved on each"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_trainers_with_one_fleet_have_the_pairs_that_each_has_alone(
    playground: Path, services: Services, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        fleet = [stack.enter_context(Processes(tmp_path / f"sampler-{number}")) for number in range(2)]
        for one in fleet:
            one.start("sampler", [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"])
        tree = small_recipe(services, playground)
        found = ",".join(one.wait("sampler").grpc for one in fleet)
        tree["sampling"] = {**tree["sampling"], "address": f"ipv4:{found}"}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-m", "sightline_cli", "run", str(tmp_path / "recipe.yaml"), "--run"]
        logs = [stack.enter_context((tmp_path / f"{name}.log").open("wb")) for name in ("red", "blue")]
        trainers = [
            subprocess.Popen([*command, tmp_path / name], stdout=log, stderr=log)
            for name, log in zip(("red", "blue"), logs, strict=True)
        ]
        for one, log in zip(trainers, logs, strict=True):
            assert one.wait(600) == 0, Path(log.name).read_text()[-2000:]
        runs = [RunDirectory(tmp_path / name) for name in ("red", "blue")]
        assert [pairs(run) for run in runs] == [alone, alone]
        assert runs[0].namespace != runs[1].namespace
        # Neither waited until the other one had finished.
        spans = [sampling(run) for run in runs]
        assert max(first for first, _ in spans) < min(last for _, last in spans)


def sampling(run: RunDirectory) -> tuple[float, float]:
    """When the first and last prompts of a run were sampled."""
    times = [
        event["time"] for event in map(json.loads, run.events.read_text().splitlines()) if event["stage"] == "sample"
    ]
    return times[0], times[-1]


@pytest.mark.slow
def test_a_policy_is_proved_on_each_and_one_that_joins_later_proves_it_too(tmp_path: Path) -> None:
    """Without a trainer: only the samplers, on a small model; gates require probes, as by default."""
    base, image = make_llava(tmp_path / "llava"), tmp_path / "image.png"
    image.write_bytes(png(1))
    make_adapter(tmp_path / "policies", base, 1, run_id="run")
    with sampler_running(base) as reference, SamplerClient(reference.address, run_id="run", timeout=60) as client:
        client.stage(tmp_path / "policies/v000001", 1)
        client.activate(1)
        probes = []
        for candidate in client.sample(image, PROMPT, 4, seed=1, max_tokens=16, policy=exact(0)).candidates:
            ids = candidate.token_ids.tolist()
            new, old = (client.score_tokens(image, PROMPT, ids, policy=exact(v)).logprobs.tolist() for v in (1, 0))
            probes.append(UpdateProbe("a", ids, new, PROMPT, old))
        alone = [client.sample(image, PROMPT, 2, seed=seed, max_tokens=8, policy=exact(1)) for seed in range(12)]
    prompts = {"a": Prompt(id="a", images=(image,), prompt=PROMPT)}
    policies = RunPolicies(tmp_path / "policies", "run", "pushed", probes=lambda version: sendable(probes, prompts))
    gate = {"required": True, "min_tokens": 4}

    async def work(first: Running, second: Running, late: Running) -> None:
        target = f"ipv4:{first.address},{second.address}"
        async with Fleet(target, policies=policies, outage_seconds=30, timeout=60) as fleet:
            settings = Publication(quorum=1.0)
            await publish(fleet, policies, version=1, previous=0, probes=probes, prompts=prompts, settings=settings)
        target += f",{late.address}"
        async with Fleet(target, policies=policies, outage_seconds=30, timeout=60) as fleet:
            asked = [
                asyncio.create_task(fleet.sample(image, PROMPT, 2, seed=seed, max_tokens=8, policy=exact(1)))
                for seed in range(12)
            ]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(second.stop)
            for got, meant in zip(await asyncio.gather(*asked), alone, strict=True):
                assert (got.policy_version, got.run_id) == (1, "run")
                assert [c.token_ids.tolist() for c in got.candidates] == [
                    c.token_ids.tolist() for c in meant.candidates
                ]

    with ExitStack() as stack:
        first, second, late = (
            stack.enter_context(sampler_running(base, policies={"gate": gate, "download_dir": str(tmp_path / name)}))
            for name in ("first", "second", "late")
        )
        asyncio.run(work(first, second, late))
        for at in (first, late):
            with SamplerClient(at.address, run_id="run") as client:
                arrival = client.policy(1).arrival
                assert arrival is not None
                assert arrival.passed
                assert arrival.gap < 1e-5
