"""Checkpoints inside an update: an interrupted update resumes and ends like an undisturbed one, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_models import dpo_recipe, make_family, random_pairs
from safetensors.torch import load_file
from sightline_trainer.dpo.update import Update, update

LAYOUT = [(0, 1, 2), (0, 1, 3), (0, 4, 1), (1, 4, 0), (2, 0, 3), (3, 2, 1)]
OFTEN: dict[str, Any] = {"checkpoint_seconds": 1e-6, "batch_size": 2, "epochs": 3, "lora": {"rank": 4, "dropout": 0.2}}
FULL: dict[str, Any] = {**OFTEN, "train": "full", "lora": {}, "accumulate": 2}


class Broken(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("llava") / "model", "llava")


def trained(model: Path, root: Path, progress: Callable[[int, int], None] = lambda *_: None, **dpo: Any) -> Update:
    recipe = dpo_recipe(model, **dpo)
    (root / "policy").mkdir(parents=True, exist_ok=True)
    return update(
        recipe, random_pairs(model, LAYOUT), previous=None, adapter=root / "policy", work=root, seed=3,
        progress=progress,
    )  # fmt: skip


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(next((root / "policy").glob("*.safetensors")))


def told(done: dict[str, float]) -> dict[str, float]:
    timed = ("seconds", "reference_seconds", "pairs_per_second", "peak_memory_mib")
    return {name: value for name, value in done.items() if name not in timed}


@pytest.mark.parametrize("values", [OFTEN, pytest.param(FULL, marks=pytest.mark.slow)])
def test_a_broken_update_goes_on_to_the_same_end(values: dict[str, Any], llava: Path, tmp_path: Path) -> None:
    whole = trained(llava, tmp_path / "whole", **{**values, "checkpoint_seconds": 0})
    assert not list((tmp_path / "whole").glob("checkpoint-*"))
    root = tmp_path / "broken"
    for stop in (0.25, 0.6, 0.8):  # share of the update; in the first, second and third pass over the pairs
        steps: list[int] = []

        def progress(done: int, total: int, stop: float = stop, steps: list[int] = steps) -> None:
            steps.append(done)
            if done > stop * total:
                raise Broken

        with pytest.raises(Broken):
            trained(llava, root, progress, **values)
        left = list(root.glob("checkpoint-*"))
        assert 1 <= len(left) <= 2
        # A torn one: it does not count.
        (root / "checkpoint-999").mkdir()
    again: list[int] = []
    done = trained(llava, root, lambda done, total: again.append(done / total), **values)
    assert min(again) > 0.6
    assert told(done.metrics) == told(whole.metrics)
    assert done.probes == whole.probes
    logs = [(place / "steps-0001.jsonl").read_text() for place in (tmp_path / "whole", root)]
    assert logs[0] == logs[1]
    expected, found = weights(tmp_path / "whole"), weights(root)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not (root / "checkpoint-999").exists()


def test_another_update_begins_anew(llava: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done > 0.5 * total:
            raise Broken

    with pytest.raises(Broken):
        trained(llava, tmp_path, progress, **OFTEN)
    again: list[float] = []
    trained(llava, tmp_path, lambda done, total: again.append(done / total), **{**OFTEN, "learning_rate": 1e-3})
    assert min(again) < 0.2


def test_a_lora_has_them_every_ten_minutes_and_full_none(llava: Path) -> None:
    assert dpo_recipe(llava).dpo.seconds_between_checkpoints == 600
    assert dpo_recipe(llava, train="full").dpo.seconds_between_checkpoints is None
    assert dpo_recipe(llava, checkpoint_seconds=0).dpo.seconds_between_checkpoints is None
    assert dpo_recipe(llava, train="full", checkpoint_seconds=30).dpo.seconds_between_checkpoints == 30


@pytest.mark.slow
def test_kill_minus_nine_inside_an_update(llava: Path, tmp_path: Path) -> None:
    import yaml

    recipe = dpo_recipe(llava, **OFTEN).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pairs = tmp_path / "pairs.parquet"
    random_pairs(llava, LAYOUT).to_parquet(pairs)

    def begin(root: Path) -> subprocess.Popen[str]:
        root.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "sightline_trainer.dpo", "--recipe", str(tmp_path / "recipe.yaml"), "--pairs",
            str(pairs), "--policy", str(root / "policy"), "--work", str(root),
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    undisturbed = begin(tmp_path / "whole")
    assert undisturbed.wait() == 0
    root = tmp_path / "killed"
    process = begin(root)
    assert process.stdout is not None
    for line in process.stdout:
        seen = json.loads(line)
        if seen.get("done", 0) > 0.5 * seen.get("total", 1):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "update.json").exists()
    assert list(root.glob("checkpoint-*/whole.json"))
    assert begin(root).wait() == 0
    first, second = (json.loads((place / "update.json").read_text()) for place in (tmp_path / "whole", root))
    assert told(second["metrics"]) == told(first["metrics"])
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(root).items())
