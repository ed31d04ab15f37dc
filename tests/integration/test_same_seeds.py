"""Two runs of one recipe with the same seeds and one thread are the same, to the byte."""

from pathlib import Path

import pytest
from running import Services, small_recipe
from sightline_trainer.execute import execute
from sightline_trainer.files import read_json
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.field]


def test_equal_seeds_give_equal_pairs_and_equal_adapters(services: Services, playground: Path, tmp_path: Path) -> None:
    """One iteration each, because a second one's pairs name the version that wrote them, and no version recurs."""
    evaluation = {"prompts": 8, "greedy_prompts": 0, "questions": 0, "diverse_prompts": 0}
    recipe = Recipe.model_validate(small_recipe(services, playground, iterations=1, evaluation=evaluation))
    found = []
    for name in ("one", "two"):
        run = RunDirectory(tmp_path / name)
        execute(recipe, run, lambda event: None)
        (adapter,) = run.policies.glob("v*/adapter_model.safetensors")
        found.append(((run.iteration(1) / "pairs.parquet").read_bytes(), adapter.read_bytes()))
        metrics = read_json(run.iteration(1) / "update.json")["metrics"]
        # Every side of every pair was sampled by the version that the update began with, and is compared.
        assert metrics["sampled_sides"] >= metrics["steps"]
        assert metrics["sampled_gap_max"] < 1e-3
        assert metrics["changed_elements"] > 0.9
    assert found[0] == found[1]
