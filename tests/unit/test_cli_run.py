"""`sightline run` on a run's own recipe."""

import json
from pathlib import Path

from sightline_cli.run import STARTED, without_started
from sightline_trainer.recipe import Recipe


def recipe(sampler: str, scorer: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "plain",
            "model": "m",
            "data": {"train": "a", "test": "b"},
            "sampling": {"address": sampler},
            "reward": {"address": scorer, "source": "playground:clip"},
        }
    )


def test_services_that_ended_with_an_earlier_run_are_started_again_and_others_are_kept(tmp_path: Path) -> None:
    mine = recipe("127.0.0.1:1", "dns:///scorer:2")
    assert without_started(mine, tmp_path) == mine  # it started none
    (tmp_path / "services").mkdir()
    (tmp_path / STARTED).write_text(json.dumps({"sampler": "127.0.0.1:1"}))
    found = without_started(mine, tmp_path)
    assert (found.sampling.address, found.reward.address) == (None, "dns:///scorer:2")
    other = recipe("127.0.0.1:9", "127.0.0.1:1")
    assert without_started(other, tmp_path) == other
