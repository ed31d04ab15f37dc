"""Models that the engine cannot use: the error is one sentence that names the model and the cause."""

import json
import shutil
from pathlib import Path

import pytest
from running import WEIGHTS
from sampler_engine import refusal
from sightline.errors import PreconditionFailed
from sightline_sampler.engines.local.model import model_directory


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WEIGHTS / "llava", tmp_path / "llava"))


def short(model: object) -> PreconditionFailed:
    refused = refusal(model)
    assert len(str(refused)) < 700
    return refused


@pytest.mark.field
def test_a_model_that_fails_its_trial_forward_is_named(copied: Path) -> None:
    """It was a ValueError of transformers, with a traceback of kilobytes and without the model's name."""
    file = copied / "processor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "patch_size": config["patch_size"] * 2}))  # fewer image tokens than features
    error = short(copied)
    assert error.reason == "MODEL_FAILS_FORWARD"
    assert str(error).startswith(f"the model {copied} fails its trial forward: ValueError: ")


@pytest.mark.field
def test_a_model_whose_files_are_damaged_is_named(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    error = short(copied)
    assert (error.reason, str(copied) in str(error)) == ("MODEL_UNREADABLE", True)


@pytest.mark.field
@pytest.mark.parametrize("name", ["playground/weights/lava", "sightline-tests/no-such-model", "./here"])
def test_a_model_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreconditionFailed, match=f"there is no directory {name} below {tmp_path}") as caught:
        model_directory(name)
    assert (caught.value.reason, "\n" in str(caught.value)) == ("MODEL_NOT_FOUND", False)
