"""`triton.mode: worker`: the same scores without Triton, and the service says so."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scorer_models
from scorer_models import SENTENCES, encoded, picture
from scorer_running import RunningScorer, until
from sightline.scorer import ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from test_scorer_bad_input import metrics

pytestmark = pytest.mark.slow
PICTURES = [encoded(picture(80 + 13 * seed, 60, seed=seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    scorer_models.tiny(folder / "tiny")
    scorer_models.siglip(folder / "siglip")
    return folder


def models(folder: Path) -> list[str]:
    names = [f"models.{name}.source={folder / name}" for name in ("tiny", "siglip")]
    return [*names, "default_model=tiny", "cache.image_bytes=0", "cache.text_bytes=0"]


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[RunningScorer]:
    scorer = RunningScorer("triton.mode=worker", "reload.rpc=true", *models(folder))
    yield scorer
    scorer.stop()


def towers(pid: int) -> list[int]:
    """Processes of the towers under the worker's guard or process."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def test_scores_are_tritons_to_the_bit(worker: RunningScorer, folder: Path) -> None:
    triton = RunningScorer(*models(folder))
    try:
        for model in ("tiny", "siglip"):
            for content in PICTURES:
                for texts in (SENTENCES, SENTENCES[:1]):
                    here, there = (scorer.score(content, texts, model=model) for scorer in (worker, triton))
                    assert [s.cosine for s in here.scores] == [s.cosine for s in there.scores]
        with ScorerClient(triton.at.grpc) as client:
            assert {model.backend for model in client.list_models().models} == {"triton-embedded"}
    finally:
        triton.stop()


def test_that_there_is_no_triton_is_said(worker: RunningScorer) -> None:
    with ScorerClient(worker.at.grpc) as client:
        assert {(model.backend, model.model_kind) for model in client.list_models().models} == {("worker", "clip")}
        assert client.score(PICTURES[0], ["a"]).model.backend == "worker"
    assert metrics(worker)['sightline_backend_up{backend="worker"}'] == 1


def test_a_tower_that_dies_takes_no_other_along(worker: RunningScorer) -> None:
    pid = worker.service.triton.pid
    before = set(towers(pid))
    assert len(before) == 4  # an image tower and a text tower of each model
    victim = min(before)
    os.kill(victim, signal.SIGKILL)

    def works() -> bool:
        try:
            return all(worker.score(PICTURES[0], SENTENCES, model=model).scores for model in ("tiny", "siglip"))
        except Exception:
            return False

    until(works, 60)
    assert worker.service.triton.pid == pid, "the worker itself was not started again"
    assert len(before & set(towers(pid))) == 3


def test_models_change_while_it_serves(worker: RunningScorer, folder: Path) -> None:
    before = worker.score(PICTURES[0], SENTENCES)
    scorer_models.make_model(folder / "tiny", scorer_models.TINY, {"mean": [0.4] * 3, "std": [0.3] * 3}, seed=5)
    assert list(worker.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == ["tiny"]
    after = worker.score(PICTURES[0], SENTENCES)
    assert (before.model.version, after.model.version) == (1, 2)
    assert [s.cosine for s in before.scores] != [s.cosine for s in after.scores]


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    from sightline_scorer.triton.worker import main

    (tmp_path / "clip_image/1").mkdir(parents=True)
    (tmp_path / "clip_image/1/model.py").write_text("raise ValueError('broken')")
    (tmp_path / "clip_image/config.pbtxt").write_text('name: "clip_image" instance_group { count: 1 }')
    done = subprocess.run(
        [sys.executable, "-m", main.__module__, "--repository", tmp_path, "--address", "127.0.0.1:0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "failed to load 'clip_image': ValueError: broken" in done.stderr
