"""Reward hacking is visible: flawed rewards, each trained for one iteration, and the warnings of the run itself."""

import json
from pathlib import Path

import pytest
from planted_hacks import HACKS
from running import ROOT, Services
from sightline_trainer.execute import execute
from sightline_trainer.recipe import load_recipe
from sightline_trainer.report.meanings import worries
from sightline_trainer.runs import RunDirectory

OWN_STYLE = "own_style"
"""The policy's own log-prob as the judge: what it says anyway is good."""
HONEST = {"clip": "{clip: {by: whole}}", "truth": "{clip: false, truth: {}}"}


def reward_of(name: str) -> str:
    if name == OWN_STYLE:
        return "{clip: false, policy_logprob: {weight: 100}}"
    return HONEST.get(name) or json.dumps({"clip": False, f"planted_hacks:{name}": {}})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sightline_playground.export import export

    root = tmp_path_factory.mktemp("scenes")
    export(root / "train", split="align", count=160, seed=1)
    export(root / "test", split="validation", count=150, seed=2)
    return root


def flagged(name: str, services: Services, scenes: Path, runs: Path) -> dict[str, list[str]]:
    """The warnings of a run of one iteration."""
    recipe = load_recipe(
        ROOT / "recipes/oracle.yaml",
        [
            "threads=1",
            "iterations=1",
            f"model={ROOT}/playground/weights/llava",
            f"data.train={scenes}/train",
            f"data.test={scenes}/test",
            "data.prompts_per_iteration=160",
            f"sampling.address={services.sampler}",
            f"reward.address={services.scorer}",
            f"reward.terms={reward_of(name)}",
            *([] if name in HONEST else ["filters={finished: {}}"]),
            "dpo.epochs=2",
            "evaluation.prompts=150",
            "evaluation.greedy_prompts=0",
            "evaluation.questions=0",
            "evaluation.diverse_prompts=0",
        ],
    )
    run = RunDirectory(runs / name)
    rows = execute(recipe, run, lambda event: None)
    updates = {1: json.loads((run.iteration(1) / "update.json").read_text())["metrics"]}
    return worries(rows, updates)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_planted_hacks_are_flagged_within_one_iteration_and_honest_rewards_are_not(
    services: Services, scenes: Path, tmp_path: Path
) -> None:
    found = {name: flagged(name, services, scenes, tmp_path) for name in (*HACKS, OWN_STYLE)}
    for name, said in found.items():
        print(name, {curve: told[0] for curve, told in said.items()})
    assert len(found) == 20
    assert sum(bool(said) for said in found.values()) >= 17
    honest = {name: flagged(name, services, scenes, tmp_path) for name in HONEST}
    assert honest == {name: {} for name in HONEST}
