"""PickScore, HPSv2, Long-CLIP and the aesthetic predictor served: named, mixed in ensembles, calibrated."""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import released_models
import scorer_models
import torch
from scorer_models import SENTENCES, encoded, picture
from scorer_running import RunningScorer
from sightline.scorer import ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_cli.main import app
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
PICTURE = picture(90, 70, seed=3)
LONG = "a red square left of a blue circle and "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def settings(folder: Path) -> list[str]:
    return [
        f"models.pick.source={folder / 'pickscore'}",
        "models.pick.kind=pickscore",
        f"models.long.source={folder / 'longclip.pt'}",
        "models.long.kind=longclip",
        f"models.nice.source={folder / 'tiny'}",
        "models.nice.kind=aesthetic",
        f"models.nice.head={folder / 'head.pth'}",
        "default_model=pick",
        "reload.rpc=true",
        "ensembles.both.members.pick=1",
        "ensembles.both.members.nice=3",
        "ensembles.both.kind=reward",
    ]


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[RunningScorer]:
    released_models.pickscore(folder / "pickscore")
    released_models.longclip(folder / "longclip.pt")
    released_models.aesthetic_head(folder / "head.pth")
    scorer_models.tiny(folder / "tiny")
    scorer = RunningScorer(*settings(folder))
    yield scorer
    scorer.stop()


def test_rewards_are_their_authors(scorer: RunningScorer, folder: Path) -> None:
    from transformers import CLIPModel

    content = encoded(PICTURE)
    with ScorerClient(scorer.at.grpc) as client:
        pick = client.score(content, SENTENCES, model="pick")
        nice = client.score(content, SENTENCES, model="nice")
        both = client.score(content, SENTENCES, model="both")
        told = {model.name: (model.model_kind, model.default_kind) for model in client.list_models().models}
    ids = open_clip.tokenizer.SimpleTokenizer()(SENTENCES)
    preprocess = open_clip.image_transform(64, is_train=False)
    theirs = CLIPModel.from_pretrained(str(folder / "pickscore")).eval()
    expected = released_models.pick_scores(theirs, preprocess(PICTURE).unsqueeze(0), ids)
    assert pick.kind == nice.kind == both.kind == "reward"
    assert pick.value.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    reference = scorer_models.Reference(folder / "tiny")
    net = released_models.aesthetic_head(folder / "again.pth")
    with torch.inference_mode():
        image = reference.model.encode_image(reference.preprocess(PICTURE).unsqueeze(0), normalize=True)
        mark = float(net(image)[0, 0])
    assert nice.value.tolist() == pytest.approx([mark] * len(SENTENCES), abs=1e-4)
    assert both.value.tolist() == pytest.approx([(p + 3 * mark) / 4 for p in pick.value], abs=1e-3)
    assert told == {
        "pick": ("pickscore", "reward"),
        "long": ("longclip", "clip_score"),
        "nice": ("aesthetic", "reward"),
        "both": ("ensemble", "reward"),
    }


def test_a_long_text_is_one_text_for_longclip(scorer: RunningScorer) -> None:
    text = LONG * 20
    parts = {model: scorer.score(encoded(PICTURE), [text], model=model).scores[0].parts for model in ("long", "pick")}
    assert parts["long"] == 1
    assert parts["pick"] > 1


def test_each_is_calibrated(scorer: RunningScorer, folder: Path) -> None:
    lines = []
    for seed in range(24):
        (folder / f"{seed}.png").write_bytes(encoded(picture(40, 40, seed=seed)))
        lines.append(json.dumps({"image": f"{seed}.png", "texts": [SENTENCES[seed % 5]]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    done = CliRunner().invoke(
        app, ["scorer", "calibrate", "--scorer", scorer.at.grpc, "--model", "pick", str(folder / "pairs.jsonl")]
    )
    assert done.exit_code == 0, done.output
    assert list(scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == ["pick"]
    response = scorer.score(encoded(PICTURE), SENTENCES, model="pick", kind=pb.SCORE_KIND_PERCENTILE)
    assert all(0 <= score.value <= 100 for score in response.scores)


def test_a_remote_triton_that_did_not_change_has_nothing_new(scorer: RunningScorer, folder: Path) -> None:
    """Nor if a network stands on a model, whose weights are then two files."""
    address = scorer.service.triton.address()
    remote = RunningScorer("triton.mode=remote", f"triton.address={address}", *settings(folder))
    try:
        here, there = (each.score(encoded(PICTURE), SENTENCES, model="nice") for each in (scorer, remote))
        assert here.scores[0].value == pytest.approx(there.scores[0].value, abs=1e-5)
        assert list(remote.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == []
        released_models.aesthetic_head(folder / "head.pth", seed=6)
        assert list(remote.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == ["nice"]
        assert list(remote.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=120).changed) == []
    finally:
        remote.stop()
        released_models.aesthetic_head(folder / "head.pth")
