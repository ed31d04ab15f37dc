"""Fuzzing of strangers' input: bytes as images, and whole requests. Each ends in a score or a clear refusal."""

import hashlib
import io
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scorer_models import SENTENCES, bomb, encoded, picture
from scorer_running import shared
from sightline.errors import InvalidInput, from_rpc_error
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis import images
from sightline_scorer.settings import ScorerLimits

LIMITS = ScorerLimits(max_image_bytes=200_000, max_image_pixels=1_000_000)
FEW = settings(max_examples=150, deadline=None, derandomize=True)
MANY = settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW_REQUESTS = settings(max_examples=60, deadline=None, derandomize=True)
MANY_REQUESTS = settings(max_examples=3_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _animation() -> bytes:
    file = io.BytesIO()
    picture(20, 20).save(file, "GIF", save_all=True, append_images=[picture(20, 20, 1), picture(20, 20, 2)])
    return file.getvalue()


def _exif() -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture(40, 30).save(file, "JPEG", exif=exif)
    return file.getvalue()


FILES = [
    encoded(picture(40, 30), "JPEG"),
    encoded(picture(40, 30), "JPEG", progressive=True),
    encoded(picture(40, 30).convert("CMYK"), "JPEG"),
    encoded(picture(40, 30), "PNG"),
    encoded(picture(40, 30).convert("P"), "PNG"),
    encoded(picture(40, 30).convert("RGBA"), "PNG"),
    encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"),
    encoded(picture(40, 30), "WEBP"),
    encoded(picture(40, 30).convert("RGBA"), "WEBP", lossless=True),
    encoded(picture(40, 30), "GIF"),
    _animation(),
    _exif(),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with some bytes changed, removed, doubled or truncated."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["set", "cut", "double", "end", "insert"])):
            case "set":
                content[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length * 8]
            case "end":
                del content[at:]
            case _:
                content[at:at] = draw(st.binary(min_size=1, max_size=length))
    return bytes(content)


def decodes_or_is_refused(content: bytes) -> None:
    image = refusal = None
    try:
        image = images.decode(content, LIMITS)
    except InvalidInput as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason in {
            "IMAGE_EMPTY", "IMAGE_TOO_LARGE", "IMAGE_UNREADABLE", "IMAGE_TOO_MANY_PIXELS", "IMAGE_DAMAGED",
        }  # fmt: skip
        assert len(refusal.message) < 1000
        return
    assert image is not None
    assert image.mode == "RGB"
    assert image.width * image.height <= LIMITS.max_image_pixels
    assert np.asarray(image).shape == (image.height, image.width, 3)


@FEW
@given(damaged())
@example(b"")
@example(bomb())
def test_a_damaged_file_is_a_picture_or_refused(content: bytes) -> None:
    decodes_or_is_refused(content)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(st.one_of(damaged(), st.binary(max_size=4096)))
def test_a_damaged_file_is_a_picture_or_refused_at_length(content: bytes) -> None:
    decodes_or_is_refused(content)


TEXTS = st.one_of(
    st.sampled_from([*SENTENCES, "", " ", "<end_of_text>", "cat " * 200, "A cat. " * 40, "x" * 9000, "\0", "\u202e"]),
    st.text(max_size=200),
)
IMAGES = st.one_of(
    st.sampled_from([pb.Image(content=content) for content in FILES]),
    damaged().map(lambda content: pb.Image(content=content)),
    st.binary(max_size=40).map(lambda digest: pb.Image(sha256=digest)),
    st.sampled_from([hashlib.sha256(content).digest() for content in FILES]).map(lambda one: pb.Image(sha256=one)),
    st.sampled_from(
        ["http://127.0.0.1/", "file:///etc/passwd", "https://[::1]/x", "gopher://x", "", "http://a@b:99999/", "\0"]
    ).map(lambda uri: pb.Image(uri=uri)),
    st.just(pb.Image()),
)
REQUESTS = st.builds(
    pb.ScoreRequest,
    image=IMAGES,
    texts=st.lists(TEXTS, max_size=5),
    model=st.sampled_from(["", "", "tiny", "siglip", "none", "a" * 500, "\n"]),
    long_text=st.sampled_from([0, 1, 2, 99]),
    kind=st.sampled_from([0, 1, 2, 3, 4, 5, 99]),
    unit=st.sampled_from([0, 1, 2, 3, 99]),
    aggregation=st.sampled_from([0, 1, 2, 3, 99]),
    phrases=st.lists(st.lists(TEXTS, max_size=3).map(lambda some: pb.Phrases(phrases=some)), max_size=5),
)
# Codes for a caller's mistakes: never INTERNAL, UNKNOWN, DEADLINE_EXCEEDED or a crash.
BLAMELESS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
}


def scores_or_is_refused(request: pb.ScoreRequest) -> None:
    call = shared()[0].stub.Score.future(request, timeout=60)
    if (failure := call.exception()) is not None:
        error = from_rpc_error(failure)
        assert error.code in BLAMELESS, f"{error.code}: {error} for {request}"
        assert error.reason.isupper()
        assert error.message
        return
    answer = call.result()
    assert len(answer.scores) == len(request.texts)
    for score in answer.scores:
        assert np.isfinite([score.value, score.cosine, score.clip_score, score.logit]).all()
        for part in score.part_scores:
            assert -1 <= part.cosine <= 1


@FEW_REQUESTS
@given(REQUESTS)
def test_a_request_is_scored_or_refused(request: pb.ScoreRequest) -> None:
    scores_or_is_refused(request)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY_REQUESTS
@given(REQUESTS)
def test_a_request_is_scored_or_refused_at_length(request: pb.ScoreRequest) -> None:
    scores_or_is_refused(request)


@FEW_REQUESTS
@given(st.lists(IMAGES, max_size=3), st.lists(TEXTS, max_size=3), st.sampled_from([0, 1, 2, 99]))
def test_an_embedding_is_given_or_refused(pictures: list[pb.Image], texts: list[str], form: Any) -> None:
    request = pb.EmbedRequest(images=pictures, texts=texts, format=form)
    call = shared()[0].stub.Embed.future(request, timeout=60)
    if (failure := call.exception()) is not None:
        error = from_rpc_error(failure)
        assert error.code in BLAMELESS, f"{error.code}: {error} for {request}"
        return
    answer = call.result()
    for outcome in (*answer.images, *answer.texts):
        if outcome.WhichOneof("outcome") == "error":
            assert outcome.error.code in {code.value[0] for code in BLAMELESS}
        else:
            values = np.frombuffer(outcome.embedding.values, "<f2" if answer.format == 2 else "<f4")
            assert np.isclose(np.linalg.norm(values.astype(np.float32)), 1, atol=0.01)
    assert (len(answer.images), len(answer.texts)) == (len(pictures), len(texts))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.sampled_from(["Score", "Embed", "FindMissingImages", "ListModels"]))
def test_bytes_that_are_no_message_harm_nothing(raw: bytes, method: str) -> None:
    """Bytes that are not a protobuf are refused; bytes that happen to be one are an ordinary request."""
    scorer = shared()[0]
    call = scorer.channel.unary_unary(f"/sightline_scorer.v1.ScorerService/{method}").future(raw, timeout=60)
    if (failure := call.exception()) is not None:
        assert failure.code() in BLAMELESS  # type: ignore[attr-defined]
    assert len(scorer.score(FILES[0], ["a cat"]).scores) == 1
