"""A run that starts with a released set and continues with the policy's own pairs; it is killed and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import Services, small_recipe
from sightline.errors import Cancelled
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.pairs.build import read_pairs
from sightline_trainer.pools import load_prompts
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory

pytestmark = pytest.mark.slow


def rows(run: RunDirectory, iteration: int) -> list[dict[str, Any]]:
    """Pairs without columns that depend on the run's version numbers or on a batch's last bits."""
    kept = []
    for row in read_pairs(run.iteration(iteration) / "pairs.parquet"):
        for name in ("images", "chosen_policy_version", "rejected_policy_version", "chosen_reward", "rejected_reward"):
            del row[name]
        kept.append({**row, "margin": row["margin"] > 0})
    return kept


def released_set(playground: Path, path: Path) -> Path:
    """The dataset's annotations against those of other pictures, in POVID's form."""
    prompts = load_prompts(playground / "train")
    released = [
        {
            "id": prompt.id,
            "image": str(prompt.images[0]),
            "conversations": _turns(prompt.prompt, prompt.reference),
            "rejected_conversations": _turns(prompt.prompt, other.reference),
        }
        for prompt, other in zip(prompts, [*prompts[1:], prompts[0]], strict=True)
        if prompt.reference != other.reference
    ]
    path.write_text(json.dumps(released))
    return path


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def test_an_offline_start_is_followed_by_a_mixture_and_a_killed_run_has_the_same_pairs(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    data = {
        "train": str(playground / "train"),
        "test": str(playground / "test"),
        "pairs": f"{released_set(playground, tmp_path / 'povid.json')}?images={playground}/train/images",
        "mix": {"offline": 0.5, "start": 1},
        "prompts_per_iteration": 16,
    }
    value = {**small_recipe(services, playground), "data": data, "iterations": 2}
    recipe, run = Recipe.model_validate(value), RunDirectory(tmp_path / "run")
    table = execute(recipe, run, lambda event: None)
    assert [row["iteration"] for row in table] == [0, 1, 2]
    first, second = rows(run, 1), rows(run, 2)
    assert {(row["chosen_source"], row["rejected_source"], row["rule"]) for row in first} == {
        ("released:chosen", "released:rejected", "released")
    }
    assert {row["rule"] for row in second} == {"released", "best_worst"}
    counts = json.loads((run.iteration(2) / "pairs.json").read_text())
    assert counts["pairs_released"] == sum(row["rule"] == "released" for row in second) <= 8

    other = RunDirectory(tmp_path / "killed")

    def kill(event: Event) -> None:
        if event.iteration == 2 and event.stage == "sample" and event.done:
            raise Cancelled("killed", reason="RUN_STOPPED")

    with pytest.raises(Cancelled):
        execute(recipe, other, kill)
    execute(recipe, other, lambda event: None)
    assert rows(other, 1) == first
    assert [{**row, "prompt_id": ""} for row in rows(other, 2) if row["rule"] == "released"] == [
        {**row, "prompt_id": ""} for row in second if row["rule"] == "released"
    ]
