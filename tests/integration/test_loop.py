"""The loop end to end, over a real scorer with Triton and a real sampler."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import WEIGHTS, Services, small_recipe
from sightline.errors import PreconditionFailed, SightlineError
from sightline.sampler import SamplerClient, read_manifest, verify
from sightline_trainer.dpo.probing import UpdateProbe
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.pairs.build import read_pairs
from sightline_trainer.pools import load_prompts
from sightline_trainer.publish import publish
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory
from sightline_trainer.sections import Publication
from sightline_trainer.serving import RunPolicies

pytestmark = pytest.mark.slow


def small(services: Services, playground: Path, **values: Any) -> Recipe:
    """Two iterations of 24 prompts with 4 candidates each."""
    return Recipe.model_validate(small_recipe(services, playground, **values))


def pairs(run: RunDirectory) -> list[dict[str, Any]]:
    """All pairs of a run, without columns that depend on its version numbers or on a batch's last bits."""
    rows = []
    for path in sorted(run.root.glob("iterations/*/pairs.parquet")):
        for row in read_pairs(path):
            del row["images"], row["chosen_policy_version"], row["rejected_policy_version"]
            del row["chosen_reward"], row["rejected_reward"], row["margin"]
            rows.append(row)
    return rows


def test_a_short_run_leaves_everything_behind_and_can_be_run_again(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    recipe, run, events = small(services, playground), RunDirectory(tmp_path / "run"), list[Event]()
    table = execute(recipe, run, events.append)

    assert json.loads(run.metrics.read_text()) == table
    measured = {
        "chair_s", "chair_i", "cover", "clip_score", "mean_tokens", "attribute_accuracy", "relation_accuracy",
        "degenerate", "distinct", "greedy_chair_s", "greedy_cover", "pope_f1", "pope_yes_ratio",
    }  # fmt: skip
    bounds = {f"{name}_{end}" for name in measured for end in ("low", "high")}
    for row in table:
        assert {"iteration", "policy_version", "pairs", "seconds"} | measured | bounds <= set(row)
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in measured)
    assert "chair_s_change" not in table[0]
    assert table[1]["chair_s_change"] == pytest.approx(table[1]["chair_s"] - table[0]["chair_s"])
    assert table[1]["chair_s_change_low"] <= table[1]["chair_s_change"] <= table[1]["chair_s_change_high"]
    versions = [int(row["policy_version"]) for row in table]
    assert versions[0] == 0
    assert versions == sorted(set(versions))
    assert run.state()["state"] == "succeeded"
    assert {event.stage for event in events} == {
        "start", "sample", "pair", "update", "publish", "evaluate", "iteration", "end",
    }  # fmt: skip

    with SamplerClient(services.sampler) as sampler:
        assert sampler.policy().version == versions[-1]
    for iteration, (parent, version) in enumerate(itertools.pairwise(versions), 1):
        directory = run.policies / f"v{version:06d}"
        verify(directory)
        manifest = read_manifest(directory)
        assert (manifest.version, manifest.parent_version, manifest.iteration) == (version, parent, iteration)
        for row in read_pairs(run.iteration(iteration) / "pairs.parquet"):
            assert row["chosen_policy_version"] == row["rejected_policy_version"] == parent
            assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["margin"])
            assert row["margin"] >= 2.0

    before = {path: path.stat().st_mtime_ns for path in (run.root / "iterations").rglob("*.parquet")}
    assert execute(recipe, run, lambda event: None) == table
    assert {path: path.stat().st_mtime_ns for path in (run.root / "iterations").rglob("*.parquet")} == before

    with pytest.raises(PreconditionFailed, match="another recipe"):
        execute(recipe.model_copy(update={"seed": 5}), run, lambda event: None)


@pytest.mark.field
@pytest.mark.parametrize(
    ("values", "words", "reason"),
    [
        ({"sampling": {"candidates": 100}}, "sampling.candidates: the recipe needs 100", "LIMIT_TOO_LOW"),
        ({"sampling": {"max_tokens": 5000}}, "sampling.max_tokens: the recipe needs 5000", "LIMIT_TOO_LOW"),
        ({"reward": {"model": "clop"}}, "reward.model is clop", "MODEL_NOT_FOUND"),
        ({"candidates": {"policy": {}, "question_answer": {}}}, "questions.jsonl", "NO_QUESTIONS"),
        ({"dpo": {"launch": ["accelerato", "launch"]}}, "no accelerato", "LAUNCHER_UNUSABLE"),
    ],
)
def test_what_the_services_do_not_allow_is_told_before_any_work(
    services: Services, playground: Path, tmp_path: Path, values: dict[str, Any], words: str, reason: str
) -> None:
    for name in ("train", "test"):
        shutil.copytree(playground / name, tmp_path / name)
    (tmp_path / "train/questions.jsonl").unlink()
    tree = small_recipe(services, tmp_path)
    for section, inner in values.items():
        tree[section] = {**tree.get(section, {}), **inner}
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(SightlineError, match=words) as caught:
        execute(Recipe.model_validate(tree), run, lambda event: None)
    assert caught.value.reason == reason
    assert not (run.root / "iterations").exists()


@pytest.mark.field
def test_a_changed_update_is_made_anew_on_the_same_candidates(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    execute(small(services, playground, iterations=1), run, lambda event: None)
    candidates = (run.iteration(1) / "candidates/00000.parquet").stat().st_mtime_ns
    events = list[Event]()
    changed = small(services, playground, iterations=2, threads=2, dpo={"learning_rate": 1e-4})
    table = execute(changed, run, events.append)
    assert "dpo.learning_rate: 0.0002 -> 0.0001" in events[0].message
    assert (run.iteration(1) / "candidates/00000.parquet").stat().st_mtime_ns == candidates
    assert [row["policy_version"] for row in table] == [0, 2, 3]
    assert (run.root / "replaced/0001/iterations/0001/update.json").exists()


@pytest.mark.parametrize("stage", ["sample", "update", "publish"])
def test_a_trainer_killed_in_a_stage_goes_on_to_the_same_pairs(
    services: Services, playground: Path, tmp_path: Path, stage: str
) -> None:
    recipe = small(services, playground, iterations=1)
    undisturbed = RunDirectory(tmp_path / "undisturbed")
    execute(recipe, undisturbed, lambda event: None)

    run = RunDirectory(tmp_path / "killed")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", "sightline_cli", "run", str(file), "--run", str(run.root)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            text = run.events.read_text() if run.events.exists() else ""
            if f'"stage": "{stage}", "iteration": 1' in text:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run.state()["state"] == "running", (tmp_path / "log").read_text()

    table = execute(recipe, run, lambda event: None)
    assert len(table) == 2
    assert pairs(run) == pairs(undisturbed)


def test_two_trainers_never_work_on_one_run(services: Services, playground: Path, tmp_path: Path) -> None:
    recipe, run = small(services, playground), RunDirectory(tmp_path / "run")

    def intrude(event: Event) -> None:
        with pytest.raises(PreconditionFailed, match="another trainer"):
            execute(recipe, RunDirectory(run.root), lambda event: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(recipe, run, intrude)
    assert run.state()["state"] == "stopped"


async def arrive(
    services: Services, run: RunDirectory, version: int, probes: list[UpdateProbe], playground: Path
) -> None:
    """Publish as the loop does."""
    from sightline.sampler import AsyncSamplerClient

    prompts = {prompt.id: prompt for prompt in load_prompts(playground / "train")}
    policies = RunPolicies(run.policies, run.namespace)
    async with AsyncSamplerClient(services.sampler, run_id=run.namespace) as client:
        await publish(
            client, policies, version=version, previous=0, probes=probes, prompts=prompts, settings=Publication()
        )


def test_a_policy_whose_probes_do_not_agree_is_not_activated(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    import asyncio

    recipe, run = small(services, playground, iterations=1), RunDirectory(tmp_path / "run")
    execute(recipe, run, lambda event: None)
    update = json.loads((run.iteration(1) / "update.json").read_text())
    probes = [UpdateProbe(**probe) for probe in update["probes"]]
    with SamplerClient(services.sampler) as sampler:
        sampler.activate(0)
    wrong = [UpdateProbe(probe.prompt_id, probe.token_ids, [x - 1.0 for x in probe.logprobs]) for probe in probes]
    with pytest.raises(PreconditionFailed, match="did not arrive"):
        asyncio.run(arrive(services, run, update["version"], wrong, playground))
    with SamplerClient(services.sampler) as sampler:
        assert sampler.policy().version == 0
    asyncio.run(arrive(services, run, update["version"], probes, playground))
    with SamplerClient(services.sampler) as sampler:
        assert sampler.policy().version == update["version"]


def test_the_loop_outlives_a_sampler_that_is_killed(playground: Path, services: Services, tmp_path: Path) -> None:
    """The sampler is killed by kill -9 during sampling; a new one on the same port takes over."""
    from sightline_cli.processes import Processes

    with Processes(tmp_path / "services") as processes:
        model = [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"]
        processes.start("sampler", model)
        address = processes.wait("sampler").grpc
        port = address.rsplit(":", 1)[1]
        pid = json.loads((tmp_path / "services/sampler.json").read_text())["pid"]
        recipe = small(Services(services.scorer, address, {}), playground, iterations=1)
        killed = False

        def observe(event: Event) -> None:
            nonlocal killed
            if event.stage == "sample" and event.done >= 5 and not killed:
                killed = True
                os.kill(pid, signal.SIGKILL)
                processes.wait_end("sampler")
                processes.start("sampler", model, port=int(port))

        table = execute(recipe, RunDirectory(tmp_path / "run"), observe)
        assert killed
        assert len(table) == 2
