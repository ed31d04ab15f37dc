"""The examples in examples/, run as by a reader, against a real scorer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, WEIGHTS, Services
from scorer_models import encoded, picture

TEXTS = ["There is a red circle.", "There is a blue square."]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory with four pictures."""
    directory = tmp_path / "images"
    directory.mkdir()
    for seed in range(4):
        (directory / f"{seed}.png").write_bytes(encoded(picture(64, 64, seed)))
    return directory


def run(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)
    assert done.returncode == code, done.stderr
    return done


def test_score_images(services: Services, images: Path) -> None:
    done = run(sys.executable, "examples/score_images.py", services.scorer, images / "0.png", *TEXTS)
    scores = [float(line[:6]) for line in done.stdout.splitlines()]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    failed = run(sys.executable, "examples/score_images.py", services.scorer, "no.png", "a", code=1)
    assert "IMAGE_FILE_UNREADABLE" in failed.stderr


def test_filter_dataset(services: Services, images: Path) -> None:
    rows = [{"image": f"images/{seed % 5}.png", "text": TEXTS[seed % 2]} for seed in range(10)]
    pairs = images.parent / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    done = run(sys.executable, "examples/filter_dataset.py", services.scorer, pairs, "--above", "-1")
    kept = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in kept] == [row["image"] for row in rows if row["image"] != "images/4.png"]
    assert all(0 <= row["score"] <= 100 for row in kept)
    assert "'IMAGE_FILE_UNREADABLE': 2" in done.stderr
    assert "10/10" in done.stderr


def test_verl_reward(services: Services, images: Path) -> None:
    done = run(sys.executable, "examples/verl_reward.py", services.scorer, images / "0.png", TEXTS[0])
    assert "'scored': 1.0" in done.stdout


@pytest.mark.slow
def test_trl_grpo_reward(services: Services, images: Path, tmp_path: Path) -> None:
    command = ["--model", WEIGHTS / "llava", "--images", images, "--steps", "2", "--out", tmp_path / "grpo"]
    done = run(sys.executable, "examples/trl_grpo_reward.py", services.scorer, *command)
    lines = [line for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    assert "failed 0%" in lines[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
def test_node(services: Services, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unchanged protos in @grpc/grpc-js: scores, and an error with its status."""
    directory = tmp_path / "node"
    shutil.copytree(ROOT / "examples/node", directory, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"], cwd=directory, capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"npm could not install: {installed.stderr[-200:]}")
    monkeypatch.setenv("SIGHTLINE_PROTOS", str(ROOT / "protos"))
    done = run("node", directory / "score.js", services.scorer, images / "0.png", *TEXTS)
    scores = [float(line[:6]) for line in done.stdout.splitlines()]
    assert len(scores) == 2
    python = run(sys.executable, "examples/score_images.py", services.scorer, images / "0.png", *TEXTS)
    assert scores == [float(line[:6]) for line in python.stdout.splitlines()]
    junk = images / "junk.png"
    junk.write_bytes(b"no image")
    failed = run("node", directory / "score.js", services.scorer, junk, "a", code=1)
    assert failed.stderr.startswith("INVALID_ARGUMENT: ")
