"""[scorer-remote] and [sampler-remote] work where torch, open_clip and transformers cannot be imported."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from engine_mind import Mind
from engine_server import serving_app
from packaging.requirements import Requirement
from running import ROOT, WEIGHTS
from scorer_models import SENTENCES, encoded, picture
from scorer_running import shared
from vllm_server import VllmServer


def light(*arguments: str | Path, python: str | Path = sys.executable, **environment: str) -> Any:
    command = [python, ROOT / "tests/light.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["heavy"] == []
    return told["told"]


def test_a_scorer_with_triton_elsewhere(tmp_path: Path) -> None:
    scorer, models = shared()
    (tmp_path / "picture.png").write_bytes(content := encoded(picture(333, 77, seed=1)))
    found = light("scorer", scorer.service.triton.address(), models["tiny"], tmp_path / "picture.png", *SENTENCES)
    expected = [score.cosine for score in scorer.score(content, SENTENCES).scores]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_sampler_with_its_engine_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(encoded(picture(64, 64)))
    mind = Mind(WEIGHTS / "llava")
    with serving_app(VllmServer(mind).app) as url:
        settings = {
            "engine": {"kind": "vllm", "model": str(WEIGHTS / "llava"), "vllm": {"url": url}},
            "policies": {"state_dir": str(tmp_path)},
        }
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        assert isinstance(light("sampler", tmp_path / "settings.json", tmp_path / "picture.png", "What is there?"), str)


@pytest.mark.parametrize("extra", ["scorer-remote", "sampler-remote", "service", "gateway"])
def test_the_light_extras_name_nothing_heavy(extra: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    todo, names = [extra], set()
    while todo:
        for text in extras[todo.pop()]:
            wanted = Requirement(text)
            names.add(wanted.name)
            todo += wanted.extras if wanted.name == "sightline" else []
    assert names.isdisjoint({"torch", "torchvision", "open_clip_torch", "transformers", "peft", "trl"})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scorer_remote_alone_is_all_that_it_needs(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, f"sightline[scorer-remote] @ {ROOT.as_uri()}"], check=True)
    scorer, models = shared()
    (tmp_path / "picture.png").write_bytes(encoded(picture(333, 77, seed=1)))
    address = scorer.service.triton.address()
    arguments = ("scorer", address, models["tiny"], tmp_path / "picture.png", *SENTENCES)
    assert light(*arguments, python=python, PYTHONPATH="") == pytest.approx(light(*arguments), abs=1e-6)
