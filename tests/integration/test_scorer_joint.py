"""ImageReward and a language model's yes, served: named, mixed in ensembles, calibrated; one that dies takes no other
along."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import open_clip
import pytest
import released_models
import sampler_models
import scorer_models
import torch
from scorer_models import encoded, picture
from scorer_running import RunningScorer, alive, children, until
from sightline.errors import PreconditionFailed, SightlineError, Unavailable
from sightline.sampler import SamplerClient
from sightline.scorer import ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_cli.main import app
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
PICTURE = picture(90, 70, seed=3)
TEXTS = ["a red square left of a blue circle", "a photo of a dog", "two cats on a couch"]
QUESTION = "is there {text} in the picture ? yes no"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    released_models.imagereward(folder / "ImageReward.pt")
    released_models.bert_tokenizer(folder)
    scorer_models.tiny(folder / "tiny")
    sampler_models.make_llava(folder / "llava")
    return folder


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[sampler_models.Running]:
    with sampler_models.running(folder / "llava") as running:
        yield running


def settings(folder: Path, sampler: sampler_models.Running) -> list[str]:
    return [
        f"models.tiny.source={folder / 'tiny'}",
        "models.reward.kind=imagereward",
        f"models.reward.source={folder / 'ImageReward.pt'}",
        f"models.reward.calibration={folder / 'reward.json'}",
        "models.judge.kind=vqa",
        f"models.judge.source={sampler.address}",
        f"models.judge.tokenizer={folder / 'llava'}",
        f"models.judge.question={QUESTION}",
        "models.judge.answer=yes",
        "models.judge.sampler.timeout_seconds=3",
        "default_model=tiny",
        "probe.every_seconds=1",
        "reload.rpc=true",
        "ensembles.both.members.reward=1",
        "ensembles.both.members.judge=3",
        "ensembles.both.kind=reward",
    ]


@pytest.fixture(scope="module")
def scorer(folder: Path, sampler: sampler_models.Running) -> Iterator[RunningScorer]:
    (folder / "reward.json").write_text(_calibration())
    scorer = RunningScorer(*settings(folder, sampler))
    yield scorer
    scorer.stop()


def _calibration() -> str:
    """A calibration of other weights is reported and not used until the model is calibrated."""
    from sightline_scorer.calibration import fit

    return fit(np.linspace(0, 1, 30), "other", "other").to_json()


def rewards(folder: Path, texts: list[str]) -> list[float]:
    """ImageReward's own arithmetic, on the picture by open_clip's transform."""
    from transformers import AutoTokenizer

    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = open_clip.image_transform(64, is_train=False, mean=mean, std=std)(PICTURE)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(texts, padding="max_length", max_length=35, return_tensors="pt").input_ids
    return released_models.image_rewards(state, pixels.expand(len(texts), -1, -1, -1), ids).tolist()


def yeses(folder: Path, sampler: sampler_models.Running, texts: list[str]) -> list[float]:
    """P(yes) by the sampler's own log-probabilities."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(str(folder / "llava"))
    (yes,) = words("yes", add_special_tokens=False)["input_ids"]
    with SamplerClient(sampler.address) as client:
        asked = [QUESTION.replace("{text}", text) for text in texts]
        return [float(np.exp(client.score_tokens(encoded(PICTURE), question, [yes]).logprobs[0])) for question in asked]


def test_numbers_are_their_authors(scorer: RunningScorer, folder: Path, sampler: sampler_models.Running) -> None:
    expected, said = rewards(folder, TEXTS), yeses(folder, sampler, TEXTS)
    with ScorerClient(scorer.at.grpc) as client:
        reward, judge, both = (
            client.score(encoded(PICTURE), TEXTS, model=name) for name in ("reward", "judge", "both")
        )
        again = client.score(encoded(PICTURE), TEXTS[:1], model="reward")
        probable = client.score(encoded(PICTURE), TEXTS, model="judge", kind="probability")
        told = {model.name: model for model in client.list_models().models}
    assert reward.value.tolist() == pytest.approx(expected, abs=1e-3)
    assert judge.value.tolist() == pytest.approx(said, rel=1e-4)
    assert judge.value.tolist() == probable.value.tolist()
    assert both.value.tolist() == pytest.approx(
        [(mark + 3 * yes) / 4 for mark, yes in zip(expected, said, strict=True)], abs=1e-3
    )
    assert np.std(reward.value) > 1e-3
    assert np.std(judge.value) > 0
    assert again.value[0] == reward.value[0]
    assert (again.timing.image_cached, again.timing.texts_cached) == (True, 1)
    assert (told["reward"].model_kind, told["reward"].backend, told["reward"].kinds) == (
        "imagereward",
        "triton-embedded",
        ("reward",),
    )
    assert (told["judge"].model_kind, told["judge"].backend) == ("vqa", "sampler")
    assert told["judge"].kinds == ("reward", "probability")
    assert told["both"].kinds == ("reward",)
    assert len({model.weights_digest for model in told.values()}) == 4


def test_what_they_do_not_give_is_refused(scorer: RunningScorer) -> None:
    with ScorerClient(scorer.at.grpc) as client:
        for model in ("reward", "judge", "both"):
            with pytest.raises(PreconditionFailed, match="no cosine"):
                client.score(encoded(PICTURE), TEXTS, model=model, kind="cosine")
        with pytest.raises(PreconditionFailed, match="no embeddings"):
            client.embed(texts=["a"], model="reward")
        parts = client.score(encoded(PICTURE), ["a red square. " * 12], model="reward")
        assert parts.parts.tolist() == [12]


def test_it_is_calibrated(scorer: RunningScorer, folder: Path) -> None:
    lines = []
    for seed in range(24):
        (folder / f"{seed}.png").write_bytes(encoded(picture(40, 40, seed=seed)))
        lines.append(json.dumps({"image": f"{seed}.png", "texts": [TEXTS[seed % 3]]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    command = ["scorer", "calibrate", "--scorer", scorer.at.grpc, "--model", "reward"]
    done = CliRunner().invoke(app, [*command, "--out", str(folder / "reward.json"), str(folder / "pairs.jsonl")])
    assert done.exit_code == 0, done.output
    assert list(scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == ["reward"]
    response = scorer.score(encoded(PICTURE), TEXTS, model="reward", kind=pb.SCORE_KIND_PERCENTILE)
    assert all(0 <= score.value <= 100 for score in response.scores)
    assert list(scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == []


def test_one_that_dies_takes_no_other_along(scorer: RunningScorer, sampler: sampler_models.Running) -> None:
    triton = scorer.service.triton.pid
    assert triton is not None
    stubs = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(triton)}
    (victim,) = [pid for pid, command in stubs.items() if b"blip_joint" in command]
    others = set(stubs) - {victim}
    os.kill(victim, signal.SIGKILL)

    def works(model: str, number: list[int] = [0]) -> bool:  # noqa: B006  counts over all calls
        number[0] += 1
        try:
            return bool(scorer.score(encoded(picture(50, 50, seed=number[0])), TEXTS, model=model).scores)
        except grpc.RpcError:
            return False

    for _ in range(10):
        assert works("tiny")
        assert works("judge")
        assert scorer.service._probe is not None
        assert scorer.service._probe.trouble() is None, "the service stays ready"
    until(lambda: works("reward"), 60)
    assert scorer.service.triton.pid == triton, "Triton was not started again"
    assert all(map(alive, others))


def test_a_sampler_that_is_gone_takes_no_other_along(folder: Path, sampler: sampler_models.Running) -> None:
    with sampler_models.running(folder / "llava") as own:
        scorer = RunningScorer("triton.mode=worker", *settings(folder, own))
        try:
            with ScorerClient(scorer.at.grpc) as client:
                client.score(encoded(PICTURE), TEXTS, model="judge")
                own.stop()
                with pytest.raises(Unavailable):
                    client.score(encoded(PICTURE), ["a green star"], model="judge", timeout=5)
                assert len(client.score(encoded(PICTURE), ["a green star"], model="reward")) == 1
                assert len(client.score(encoded(PICTURE), ["a green star"], model="tiny")) == 1
                known = client.score(encoded(PICTURE), TEXTS, model="judge")  # no question is asked twice
                assert known.timing.texts_cached == len(TEXTS)
            assert scorer.service._probe is not None
            assert scorer.service._probe.trouble() is None
        finally:
            scorer.stop()


def test_a_judge_that_cannot_be_asked_is_named_at_the_start(folder: Path, sampler: sampler_models.Running) -> None:
    words = [f"models.judge.{each}" for each in ("kind=vqa", f"source={sampler.address}", "answer=perhaps")]
    with pytest.raises(PreconditionFailed, match="no tokens for the answer 'perhaps'"):
        RunningScorer("triton.mode=worker", *words, f"models.judge.tokenizer={folder / 'llava'}")
    with pytest.raises(SightlineError, match="the model judge cannot be loaded"):
        RunningScorer("triton.mode=worker", *words, "models.judge.tokenizer=/nowhere")
