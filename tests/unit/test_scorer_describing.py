"""Models are described in a separate process, and the result is cached."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scorer_models
from running import ROOT
from sightline.errors import PreconditionFailed
from sightline_scorer import describing
from sightline_scorer.settings import ModelSettings
from sightline_scorer.triton import repository

CLIP = ROOT / "playground/weights/clip"
LOADS_NO_TORCH = """
import json, sys
from sightline_scorer import describing
from sightline_scorer.settings import ModelSettings, TritonSettings
from sightline_scorer.vocabularies import vocabulary
(found,) = describing.describe_all({"m": ModelSettings(source=sys.argv[1])}).values()
vocabulary(found.card.tokenizer, found.card.architecture, found.card.context_length)
TritonSettings().most_in_flight
heavy = sorted({"torch", "open_clip", "transformers"} & set(sys.modules))
print(json.dumps([heavy, found.card.to_json(), found.fingerprint]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/sightline/cards"


def no_child(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


def test_the_service_loads_neither_torch_nor_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(source=str(CLIP))
    asked = subprocess.run(
        [sys.executable, "-c", LOADS_NO_TORCH, str(CLIP)], capture_output=True, text=True, check=True, env=os.environ
    )
    heavy, card, mark = json.loads(asked.stdout.splitlines()[-1])
    assert heavy == []
    assert card == repository.describe("m", settings).to_json()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(subprocess, "run", no_child)
    found = describing.describe_all({"other": settings})["other"]
    assert (found.card.name, found.fingerprint) == ("other", mark)


def test_what_is_kept_is_of_these_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(source=str(scorer_models.tiny(tmp_path / "tiny")))
    mark = describing.fingerprint(settings)
    card = repository.describe("m", settings)
    describing._keep(describing.Description(card, mark))
    monkeypatch.setattr(subprocess, "run", no_child)
    assert describing.describe_all({"m": settings})["m"].card == card
    config = tmp_path / "tiny/open_clip_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(AssertionError, match="a process was started"):
        describing.describe_all({"m": settings})
    for file in cache.iterdir():
        file.write_text("{")  # a writer that was killed, or another release
    assert describing._kept(mark) is None


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    broken = scorer_models.tiny(tmp_path / "broken")
    (broken / "open_clip_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(PreconditionFailed, match=r"the model m cannot be loaded: .*cannot be loaded") as refused:
        describing.describe_all({"m": ModelSettings(source=str(broken))})
    assert refused.value.reason == "MODEL_UNREADABLE"
    with pytest.raises(PreconditionFailed, match="the model m cannot be loaded") as missing:
        describing.describe_all({"m": ModelSettings(source=str(tmp_path / "nothing"))})
    assert missing.value.reason == "MODEL_UNREADABLE"


def test_a_process_that_dies_is_an_error_of_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PreconditionFailed, match="the models m cannot be loaded: the process that loads them ended"):
        describing.describe_all({"m": ModelSettings(source=str(CLIP))})
