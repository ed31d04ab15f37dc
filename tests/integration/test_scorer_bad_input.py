"""Bad input over a real channel against a real Triton: the status, the reason, what the message says, and that the
service continues serving. The table stands in services/scorer/README.md too."""

import hashlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scorer_models import bomb, encoded, picture
from scorer_running import RunningScorer, shared
from sightline.errors import SightlineError, from_rpc_error
from sightline.scorer.v1 import scorer_pb2 as pb

GOOD = encoded(picture())
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def scorer() -> RunningScorer:
    return shared()[0]


@pytest.fixture(autouse=True)
def still_serving(scorer: RunningScorer) -> Iterator[None]:
    """After each bad input, health says SERVING and the next request gets its score."""
    yield
    with grpc.insecure_channel(scorer.at.health) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="sightline_scorer.v1.ScorerService"), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert len(scorer.score(GOOD, ["a cat"]).scores) == 1


def refused(call: Callable[[], Any]) -> SightlineError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def request(image: bytes | None, texts: list[str], **fields: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(image=None if image is None else pb.Image(content=image), texts=texts, **fields)


LONG = "cat " * 100
TABLE: dict[str, tuple[pb.ScoreRequest, CODE, str, str]] = {
    "no image": (request(None, ["a"]), CODE.INVALID_ARGUMENT, "IMAGE_MISSING", "set image.content or image.sha256"),
    "0 bytes": (request(b"", ["a"]), CODE.INVALID_ARGUMENT, "IMAGE_EMPTY", "send the whole encoded file"),
    "not an image": (request(b"hello" * 9, ["a"]), CODE.INVALID_ARGUMENT, "IMAGE_UNREADABLE", "not a JPEG, PNG"),
    "cut JPEG": (
        request(encoded(picture(300, 200), "JPEG")[:2000], ["a"]),
        CODE.INVALID_ARGUMENT,
        "IMAGE_DAMAGED",
        "send the whole file",
    ),
    "bomb": (request(bomb(), ["a"]), CODE.INVALID_ARGUMENT, "IMAGE_TOO_MANY_PIXELS", "13000 x 13000 = 169000000"),
    "too many bytes": (
        request(bytes(2_000_001), ["a"]),
        CODE.INVALID_ARGUMENT,
        "IMAGE_TOO_LARGE",
        "2000001 bytes, over the limit of 2000000",
    ),
    "no texts": (request(GOOD, []), CODE.INVALID_ARGUMENT, "NO_TEXTS", "give at least one"),
    "an empty text": (request(GOOD, ["a", ""]), CODE.INVALID_ARGUMENT, "TEXT_EMPTY", "texts[1] is empty"),
    "10 000 texts": (request(GOOD, ["a"] * 10_000), CODE.INVALID_ARGUMENT, "TOO_MANY_TEXTS", "in several requests"),
    "a large text": (request(GOOD, ["a" * 9000]), CODE.INVALID_ARGUMENT, "TEXT_TOO_LARGE", "texts[0] holds 9000 bytes"),
    "a long sentence, reject": (
        request(GOOD, ["a", LONG], long_text=pb.LONG_TEXT_REJECT),
        CODE.INVALID_ARGUMENT,
        "TEXT_TOO_LONG",
        "texts[1] has 102 tokens",
    ),
    "an unknown kind": (request(GOOD, ["a"], kind=9), CODE.INVALID_ARGUMENT, "SCORE_KIND_UNKNOWN", "9"),
    "no probability": (
        request(GOOD, ["a"], kind=pb.SCORE_KIND_PROBABILITY),
        CODE.FAILED_PRECONDITION,
        "NO_PROBABILITY",
        "SigLIP-type",
    ),
    "not calibrated": (
        request(GOOD, ["a"], kind=pb.SCORE_KIND_PERCENTILE),
        CODE.FAILED_PRECONDITION,
        "NOT_CALIBRATED",
        "sightline scorer calibrate --model tiny",
    ),
    "phrases for other texts": (
        request(GOOD, ["a", "b"], unit=pb.TEXT_UNIT_PHRASES, phrases=[pb.Phrases(phrases=["c"])]),
        CODE.INVALID_ARGUMENT,
        "PHRASES_MISMATCH",
        "1 lists of phrases for 2 texts",
    ),
    "an image by URI": (
        pb.ScoreRequest(image=pb.Image(uri="http://127.0.0.1/a.png"), texts=["a"]),
        CODE.PERMISSION_DENIED,
        "IMAGE_URI_OFF",
        "does not fetch images by URI",
    ),
    "a long text, reject": (
        request(GOOD, ["A cat. " * 30], long_text=pb.LONG_TEXT_REJECT),
        CODE.INVALID_ARGUMENT,
        "TEXT_TOO_LONG",
        "texts[0] has 92 tokens, over the model's window of 77",
    ),
    "a special token": (request(GOOD, ["<end_of_text>"]), CODE.INVALID_ARGUMENT, "TEXT_SPECIAL", "take it out"),
    "an unknown policy": (request(GOOD, ["a"], long_text=7), CODE.INVALID_ARGUMENT, "LONG_TEXT_UNKNOWN", "7"),
    "a wrong model": (
        request(GOOD, ["a"], model="ViT-B-32"),
        CODE.NOT_FOUND,
        "MODEL_NOT_FOUND",
        "there is no model 'ViT-B-32'; known: siglip, tiny",
    ),
    "an unknown digest": (
        pb.ScoreRequest(image=pb.Image(sha256=bytes(32)), texts=["a"]),
        CODE.NOT_FOUND,
        "IMAGE_NOT_FOUND",
        "upload it by UploadImages",
    ),
    "no digest": (
        pb.ScoreRequest(image=pb.Image(sha256=b"abc"), texts=["a"]),
        CODE.INVALID_ARGUMENT,
        "DIGEST_INVALID",
        "32 bytes, this one 3",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input(scorer: RunningScorer, name: str) -> None:
    bad, code, reason, says = TABLE[name]
    began = time.monotonic()
    error = refused(lambda: scorer.stub.Score(bad, timeout=20))
    assert (error.code, error.reason) == (code, reason)
    assert says in error.message
    assert error.retry_after is None, "trying again would not help"
    assert time.monotonic() - began < 2, "refused without working on it"


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_in_a_stream_fails_its_item_only(scorer: RunningScorer, name: str) -> None:
    bad, code, reason, says = TABLE[name]
    items = [
        pb.ScoreStreamRequest(id=1, request=request(GOOD, ["a cat"])),
        pb.ScoreStreamRequest(id=2, request=bad),
        pb.ScoreStreamRequest(id=3, request=request(GOOD, ["a dog"])),
    ]
    answers = {answer.id: answer for answer in scorer.stub.ScoreStream(iter(items), timeout=20)}
    assert {1, 2, 3} == set(answers)
    error = answers[2].error
    assert (error.code, error.reason) == (code.value[0], reason)
    assert says in error.message
    assert len(answers[1].response.scores) == len(answers[3].response.scores) == 1


def test_a_message_over_the_servers_limit(scorer: RunningScorer) -> None:
    assert "larger than max" in refused(lambda: scorer.score(bytes(65 * 2**20), ["a"])).message


def test_a_deadline_that_cannot_be_kept(scorer: RunningScorer) -> None:
    error = refused(lambda: scorer.score(GOOD, [f"{n} of a cat " * 4 for n in range(1000)], seconds=0.02))
    assert error.code is CODE.DEADLINE_EXCEEDED


def test_a_cancelled_call_leaves_nothing_behind(scorer: RunningScorer) -> None:
    for _ in range(20):
        call = scorer.stub.Score.future(request(GOOD, [f"{n} of a cat " * 4 for n in range(200)]), timeout=20)
        time.sleep(0.005)
        call.cancel()
    assert len(scorer.score(GOOD, ["a cat"], seconds=5).scores) == 1


def test_a_client_that_leaves_a_stream(scorer: RunningScorer) -> None:
    go_on = threading.Event()

    def endless() -> Iterator[pb.ScoreStreamRequest]:
        for number in range(10_000):
            yield pb.ScoreStreamRequest(id=number, request=request(GOOD, ["a cat"]))
            if go_on.is_set():
                return

    call = scorer.stub.ScoreStream(endless(), timeout=20)
    next(call)
    call.cancel()
    go_on.set()


def metrics(scorer: RunningScorer) -> dict[str, float]:
    page = urllib.request.urlopen(f"http://{scorer.at.metrics}/metrics").read().decode()
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name.removeprefix("sightline_scorer_"): float(value) for name, value in lines}


def test_bad_input_is_counted(scorer: RunningScorer) -> None:
    before = metrics(scorer)
    refused(lambda: scorer.stub.Score(TABLE["cut JPEG"][0], timeout=5))
    scorer.score(GOOD, ["a cat", "a dog"])
    after = metrics(scorer)

    def rise(name: str) -> float:
        return after[name] - before[name]

    assert rise('pairs_total{outcome="OK"}') == 2
    assert rise('pairs_total{outcome="INVALID_ARGUMENT"}') == 1
    assert rise('image_decode_failures_total{reason="IMAGE_DAMAGED"}') == 1
    assert rise("nonfinite_total") == 0
    assert rise('stage_seconds_count{stage="text"}') >= 1
    assert rise('score_count{model="tiny"}') == 2
    assert after['sightline_backend_up{backend="triton"}'] == 1
    assert any(name.startswith("model_info{") and 'model="tiny"' in name for name in after)
    handled = [name for name in after if name.startswith("grpc_server_handled_total") and '"InvalidArgument"' in name]
    assert sum(map(rise, handled)) == 1


def upload(scorer: RunningScorer, *pieces: tuple[bytes, bytes, bool]) -> pb.UploadImagesResponse:
    messages = [pb.UploadImagesRequest(sha256=name, chunk=chunk, last=last) for name, chunk, last in pieces]
    return scorer.stub.UploadImages(iter(messages), timeout=10)


def test_upload_then_score_by_digest(scorer: RunningScorer) -> None:
    content = encoded(picture(200, 100, seed=9))
    name = hashlib.sha256(content).digest()
    other = hashlib.sha256(b"other").digest()
    missing = scorer.stub.FindMissingImages(pb.FindMissingImagesRequest(sha256=[name, other]), timeout=5)
    assert list(missing.sha256) == [name, other]
    answer = upload(
        scorer,
        (name, content[:500], False),
        (b"", content[500:], True),
        (other, b"not the right bytes", True),
        (hashlib.sha256(b"").digest(), b"", True),
    )
    assert [outcome.sha256 for outcome in answer.outcomes[:2]] == [name, other]
    assert not answer.outcomes[0].HasField("error")
    assert answer.outcomes[1].error.reason == "DIGEST_MISMATCH"
    assert answer.outcomes[1].error.code == CODE.DATA_LOSS.value[0]
    assert answer.outcomes[2].error.reason == "IMAGE_EMPTY"
    missing = scorer.stub.FindMissingImages(pb.FindMissingImagesRequest(sha256=[name, other]), timeout=5)
    assert list(missing.sha256) == [other]
    by_name = scorer.stub.Score(pb.ScoreRequest(image=pb.Image(sha256=name), texts=["a cat"]), timeout=5)
    assert by_name.scores[0].cosine == pytest.approx(scorer.score(content, ["a cat"]).scores[0].cosine, abs=1e-6)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([(bytes(32), b"a", False)], "UPLOAD_INCOMPLETE"),
        ([(bytes(32), b"a", False), (b"1" * 32, b"b", True)], "UPLOAD_INTERLEAVED"),
    ],
)
def test_a_broken_upload(scorer: RunningScorer, pieces: list[tuple[bytes, bytes, bool]], reason: str) -> None:
    assert refused(lambda: upload(scorer, *pieces)).reason == reason


def test_too_many_digests(scorer: RunningScorer) -> None:
    asked = pb.FindMissingImagesRequest(sha256=[bytes(32)] * 1025)
    assert refused(lambda: scorer.stub.FindMissingImages(asked, timeout=5)).reason == "TOO_MANY_DIGESTS"
