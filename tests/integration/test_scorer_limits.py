"""Limits of a team on the real scorer: the costs of Score, ScoreStream and Embed."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from scorer_models import encoded, picture, tiny
from scorer_running import RunningScorer
from sightline.errors import Overloaded, typed_errors
from sightline.scorer.v1 import scorer_pb2 as pb

IMAGE = pb.Image(content=encoded(picture()))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningScorer]:
    model: Path = tiny(tmp_path_factory.mktemp("limits") / "tiny")
    running = RunningScorer(f"models.tiny.source={model}", "auth.anonymous_limits={texts_per_minute: 12}")
    yield running
    running.stop()


def test_each_item_of_a_stream_has_its_own_outcome_and_calls_are_refused_with_the_time(scorer: RunningScorer) -> None:
    requests = [pb.ScoreRequest(image=IMAGE, texts=["a", "b", "c", "d"]) for _ in range(5)]
    items = [pb.ScoreStreamRequest(id=number, request=request) for number, request in enumerate(requests)]
    answers = list(scorer.stub.ScoreStream(iter(items), timeout=60))
    scored = [answer for answer in answers if answer.WhichOneof("outcome") == "response"]
    refused = [answer.error for answer in answers if answer.WhichOneof("outcome") == "error"]
    assert (len(scored), len(refused)) == (3, 2)  # twelve texts a minute
    assert {error.reason for error in refused} == {"TEAM_TEXTS_PER_MINUTE"}
    assert {error.code for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert all(0 < error.retry_after_seconds <= 20 for error in refused)
    for call in (
        lambda: scorer.score(IMAGE.content, ["a"] * 12),
        lambda: scorer.stub.Embed(pb.EmbedRequest(texts=["a"] * 12), timeout=20),
    ):
        with pytest.raises(Overloaded) as caught, typed_errors():
            call()
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 60
    assert scorer.stub.ListModels(pb.ListModelsRequest(), timeout=20).models  # costs nothing
