"""Models that change while the service runs, calibrations, and ensembles."""

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import scorer_models
from scorer_models import SENTENCES, Reference, encoded, picture
from scorer_running import QUICK, RunningScorer, until
from sightline.errors import SightlineError, from_rpc_error
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis.settings import load_settings
from sightline_scorer.calibration import FILE_NAME
from sightline_scorer.settings import ScorerSettings
from test_scorer_bad_input import metrics
from typer.testing import CliRunner

PICTURE = picture(80, 60, seed=21)
IMAGE = encoded(PICTURE)
ALWAYS = ["reload.rpc=true", "probe.timeout_seconds=120", "triton.hung_after_seconds=600"]  # on a busy machine too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    scorer_models.tiny(folder / "tiny")
    scorer_models.siglip(folder / "siglip")
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[RunningScorer]:
    scorer = RunningScorer(f"models.a.source={folder / 'tiny'}", f"fetch.directories=[{folder}]", *ALWAYS)
    yield scorer
    scorer.stop()


def reload(scorer: RunningScorer, *overrides: str) -> pb.ReloadModelsResponse:
    scorer.settings = load_settings(ScorerSettings, service="scorer", overrides=[*QUICK, *ALWAYS, *overrides])
    return scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=300)  # type: ignore[no-any-return]


def refused(call: Any) -> SightlineError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def cosines(response: pb.ScoreResponse) -> list[float]:
    return [score.cosine for score in response.scores]


def test_an_image_by_uri(scorer: RunningScorer, folder: Path) -> None:
    (folder / "picture.png").write_bytes(IMAGE)
    image = pb.Image(uri=f"file://{folder}/picture.png")
    by_uri = scorer.stub.Score(pb.ScoreRequest(image=image, texts=SENTENCES), timeout=20)
    assert by_uri.image_sha256 == hashlib.sha256(IMAGE).digest()
    assert cosines(by_uri) == cosines(scorer.score(IMAGE, SENTENCES))
    outside = pb.ScoreRequest(image=pb.Image(uri="file:///etc/hostname"), texts=["a"])
    error = refused(lambda: scorer.stub.Score(outside, timeout=20))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "IMAGE_URI_FILE_REFUSED")
    assert list(scorer.stub.ListModels(pb.ListModelsRequest()).limits.uri_schemes) == ["file"]


def test_nothing_changed_is_no_new_version(scorer: RunningScorer, folder: Path) -> None:
    answer = reload(scorer, f"models.a.source={folder / 'tiny'}")
    assert list(answer.changed) == list(answer.removed) == []
    assert [(model.name, model.version) for model in answer.models] == [("a", 1)]


def test_a_model_calibrated_on_a_reference_set(scorer: RunningScorer, folder: Path, tmp_path: Path) -> None:
    """The command line asks the service and writes beside the model; a reload uses it."""
    from sightline_cli.main import app

    reference = Reference(folder / "tiny")
    rows, expected = [], []
    for seed in range(12):
        image = picture(40, 40, seed=seed)
        (tmp_path / f"{seed}.png").write_bytes(encoded(image))
        rows.append(json.dumps({"image": f"{seed}.png", "texts": SENTENCES}))
        expected.extend(reference.cosines(image, SENTENCES).tolist())
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(rows))
    assert "NOT_CALIBRATED" in refused(lambda: scorer.score(IMAGE, ["a"], kind=pb.SCORE_KIND_PERCENTILE)).reason
    done = CliRunner().invoke(app, ["scorer", "calibrate", str(pairs), "--scorer", scorer.at.grpc, "--model", "a"])
    assert done.exit_code == 0, done.output
    facts = json.loads((folder / "tiny" / FILE_NAME).read_text())
    assert facts["pairs"] == 60
    answer = scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=300)
    assert list(answer.changed) == ["a"]
    assert answer.models[0].version == 1, "the weights are the same"
    assert answer.models[0].calibration_digest
    assert pb.SCORE_KIND_PERCENTILE in answer.models[0].kinds
    response = scorer.score(IMAGE, SENTENCES, kind=pb.SCORE_KIND_PERCENTILE)
    found = reference.cosines(PICTURE, SENTENCES)
    lower = [100 * np.mean(np.array(expected) < cosine) for cosine in found]
    np.testing.assert_allclose([score.value for score in response.scores], lower, atol=4)
    assert response.model.calibration_digest == answer.models[0].calibration_digest
    wrong = CliRunner().invoke(app, ["scorer", "calibrate", str(pairs), "--scorer", scorer.at.grpc, "--model", "x"])
    assert wrong.exit_code == 2
    assert "no model 'x'" in wrong.output


@pytest.mark.slow
def test_new_weights_take_over_while_requests_are_answered(scorer: RunningScorer, folder: Path) -> None:
    """No request fails, each answer comes from one version alone, and the old version is gone afterwards."""
    old = Reference(folder / "tiny")
    expected = {scorer.score(IMAGE, ["a"]).model.weights_digest: old.cosines(PICTURE, SENTENCES)}
    outcomes: list[pb.ScoreResponse | grpc.RpcError] = []
    stop = threading.Event()

    def load() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                outcomes.append(scorer.score(IMAGE, [*SENTENCES, f"new {threading.get_ident()} {number}"]))
            except grpc.RpcError as error:
                outcomes.append(error)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    scorer_models.make_model(
        folder / "tiny", scorer_models.TINY, {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27]}, seed=7
    )
    answer = scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=300)
    after = scorer.score(IMAGE, SENTENCES)
    stop.set()
    for thread in threads:
        thread.join()
    assert list(answer.changed) == ["a"]
    assert (after.model.version, after.model.state) == (2, pb.MODEL_STATE_READY)
    expected[after.model.weights_digest] = Reference(folder / "tiny").cosines(PICTURE, SENTENCES)
    assert len(expected) == 2
    assert not [outcome for outcome in outcomes if isinstance(outcome, grpc.RpcError)]
    for outcome in outcomes:
        assert isinstance(outcome, pb.ScoreResponse)
        np.testing.assert_allclose(cosines(outcome)[:-1], expected[outcome.model.weights_digest], atol=1e-4)
    assert {outcome.model.version for outcome in outcomes if isinstance(outcome, pb.ScoreResponse)} >= {1}
    until(lambda: not scorer.stub.ListModels(pb.ListModelsRequest()).other_versions, 20)
    error = refused(lambda: scorer.score(IMAGE, ["a"], kind=pb.SCORE_KIND_PERCENTILE))
    assert "fitted for others" in error.message, "a calibration of other weights is not used"


def test_weights_that_cannot_be_loaded_change_nothing(scorer: RunningScorer, folder: Path) -> None:
    before = scorer.score(IMAGE, SENTENCES)
    weights = folder / "tiny/open_clip_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    try:
        error = refused(lambda: scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=300))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RELOAD_FAILED")
        (failed,) = scorer.stub.ListModels(pb.ListModelsRequest()).other_versions
        assert (failed.name, failed.state) == ("a", pb.MODEL_STATE_FAILED)
        assert failed.error
        assert metrics(scorer)['sightline_reload_failing{what="models"}'] == 1
        assert cosines(scorer.score(IMAGE, SENTENCES)) == cosines(before)
    finally:
        weights.write_bytes(content)
    assert list(scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=300).changed) == []
    assert not scorer.stub.ListModels(pb.ListModelsRequest()).other_versions
    assert metrics(scorer)['sightline_reload_failing{what="models"}'] == 0


def test_models_and_ensembles_come_and_go(scorer: RunningScorer, folder: Path) -> None:
    answer = reload(
        scorer,
        f"models.a.source={folder / 'tiny'}",
        f"models.b.source={folder / 'siglip'}",
        "ensembles.both.members.a=3",
        "ensembles.both.members.b=1",
        "ensembles.both.kind=cosine",
        "default_model=both",
    )
    assert list(answer.changed) == ["b"]
    both = next(model for model in answer.models if model.name == "both")
    assert both.is_default
    assert [(member.model, member.weight) for member in both.members] == [("a", 0.75), ("b", 0.25)]
    assert pb.SCORE_KIND_PROBABILITY not in both.kinds, "only one of them has it"
    one, other = (Reference(folder / name).cosines(PICTURE, SENTENCES) for name in ("tiny", "siglip"))
    response = scorer.score(IMAGE, SENTENCES)
    assert (response.model.name, response.kind) == ("both", pb.SCORE_KIND_COSINE)
    np.testing.assert_allclose([s.value for s in response.scores], 0.75 * one + 0.25 * other, atol=1e-4)
    np.testing.assert_allclose(cosines(response), 0.75 * one + 0.25 * other, atol=1e-4)
    clip = scorer.score(IMAGE, SENTENCES, kind=pb.SCORE_KIND_CLIP_SCORE)
    wanted = 75 * np.maximum(one, 0) + 25 * np.maximum(other, 0)
    np.testing.assert_allclose([s.value for s in clip.scores], wanted, atol=1e-2)
    parts = scorer.score(IMAGE, ["A cat. A dog."], unit=pb.TEXT_UNIT_SENTENCES).scores[0]
    assert [part.text for part in parts.part_scores] == ["A cat.", "A dog."]
    error = refused(lambda: scorer.score(IMAGE, ["a"], kind=pb.SCORE_KIND_PROBABILITY))
    assert (error.reason, error.metadata["model"]) == ("NO_PROBABILITY", "a")
    error = refused(lambda: scorer.stub.Embed(pb.EmbedRequest(texts=["a"]), timeout=5))
    assert error.reason == "MODEL_IS_ENSEMBLE"

    answer = reload(scorer, f"models.b.source={folder / 'siglip'}")
    assert (list(answer.changed), list(answer.removed)) == ([], ["a"])
    assert refused(lambda: scorer.score(IMAGE, ["a"], model="a")).reason == "MODEL_NOT_FOUND"
    np.testing.assert_allclose(cosines(scorer.score(IMAGE, SENTENCES)), other, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["ensembles.e.members.x=1"], "members that are not models: x"),
        (["ensembles.m.members.m=1"], "both a model and an ensemble"),
        (["ensembles.e.members.m=0"], "greater than 0"),
        (["ensembles.e.members.m=1", "default_model=f"], "not one of models: m, e"),
    ],
)
def test_ensembles_that_make_no_sense(overrides: list[str], says: str) -> None:
    from sightline_chassis.settings import SettingsError

    with pytest.raises(SettingsError, match=says):
        load_settings(ScorerSettings, service="scorer", overrides=["models.m.source=x", *overrides])
