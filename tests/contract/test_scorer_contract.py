"""The scorer's contract: the names of the SDK, the RPCs, and a Triton that somebody else runs."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
import sightline.scorer
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from scorer_models import SENTENCES, encoded, picture, tiny
from scorer_running import RunningScorer, shared
from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.picture_rule import PICTURE_RULE
from sightline.scorer import ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_scorer.triton.embedded import EmbeddedTriton

GOOD = encoded(picture())


def test_the_names_of_the_sdk() -> None:
    assert sightline.scorer.__all__ == [
        "Aggregation",
        "AsyncScorerClient",
        "EmbedResult",
        "Embedding",
        "EnsembleMember",
        "Image",
        "ImageDigest",
        "ImageUri",
        "Kind",
        "Limits",
        "LongText",
        "ModelInfo",
        "Models",
        "Outcome",
        "Pair",
        "PartScore",
        "Progress",
        "ScoreOptions",
        "ScoreResult",
        "ScorerClient",
        "Timing",
        "Unit",
    ]


def test_the_client_needs_nothing_heavy() -> None:
    script = "import sightline.scorer, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not {"torch", "PIL", "tritonclient", "open_clip", "pydantic", "yaml", "prometheus_client"} & set(
        done.stdout.split()
    )


def test_no_service_no_score() -> None:
    with ScorerClient("127.0.0.1:9") as client, pytest.raises(Unavailable):
        client.score(GOOD, ["a cat"], timeout=5)


def test_an_image_file_that_is_not_there(tmp_path: Path) -> None:
    with ScorerClient("127.0.0.1:9") as client, pytest.raises(InvalidInput, match="cannot be read"):
        client.score(tmp_path / "none.png", ["a cat"])


def triton_address() -> str:
    triton = shared()[0].service.triton
    assert isinstance(triton, EmbeddedTriton)
    return triton.address()


def remote(source: Path, name: str = "tiny", address: str | None = None, more: Sequence[str] = ()) -> RunningScorer:
    return RunningScorer(
        f"models.{name}.source={source}",
        "triton.mode=remote",
        f"triton.address={address or triton_address()}",
        "triton.start_timeout_seconds=2",
        *more,
    )


@pytest.mark.slow
def test_a_triton_that_somebody_else_runs() -> None:
    """A second scorer on the first one's Triton: same scores, and stopping it leaves Triton alone."""
    first, models = shared()
    second = remote(models["tiny"])
    try:
        ours = [score.cosine for score in second.score(GOOD, SENTENCES).scores]
        theirs = [score.cosine for score in first.score(GOOD, SENTENCES).scores]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert second.score(GOOD, ["a"]).model.weights_digest == first.score(GOOD, ["a"]).model.weights_digest
    finally:
        second.stop()
    assert first.score(GOOD, ["a cat"]).scores


def test_a_remote_triton_that_is_not_there() -> None:
    with pytest.raises(Unavailable, match=r"Triton at 127\.0\.0\.1:9 was not ready within 2 s"):
        remote(shared()[1]["tiny"], address="127.0.0.1:9")


def test_a_remote_triton_with_another_model(tmp_path: Path) -> None:
    """The tokenizer comes from `source`, the towers from Triton; two different models are detected at the start."""
    with pytest.raises(PreconditionFailed, match="window of 32 tokens, but Triton serves"):
        remote(shared()[1]["siglip"])
    with pytest.raises(PreconditionFailed, match="has other weights"):
        remote(_retrained(tmp_path))


def _retrained(directory: Path) -> Path:
    from safetensors.torch import load_file, save_file

    path = tiny(directory) / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["logit_scale"] += 1
    save_file(weights, path)
    return directory


def test_reflection_lists_the_service() -> None:
    with grpc.insecure_channel(shared()[0].at.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "sightline_scorer.v1.ScorerService" in database.get_services()
        file = database.FindFileContainingSymbol("sightline_scorer.v1.ScorerService")
    assert {method.name for method in file.service[0].method} == {
        "Score",
        "ScoreStream",
        "FindMissingImages",
        "UploadImages",
        "Embed",
        "ListModels",
        "ReloadModels",
    }


def test_list_models_gives_digests_and_limits() -> None:
    answer = shared()[0].stub.ListModels(pb.ListModelsRequest(), timeout=5)
    assert [(model.name, model.is_default) for model in answer.models] == [("tiny", True), ("siglip", False)]
    for model in answer.models:
        assert len(model.weights_digest) == len(model.preprocessing_digest) == 64
    assert answer.models[1].logit_bias == -10
    assert answer.picture_rule == PICTURE_RULE
    assert (answer.limits.max_texts, answer.limits.max_text_bytes, answer.limits.max_digests) == (1024, 8192, 1024)
