"""Scores over a real channel and a real Triton equal those of open_clip itself."""

import asyncio
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scorer_models import SENTENCES, Reference, encoded, picture
from scorer_running import RunningScorer, shared
from sightline.errors import InvalidInput
from sightline.scorer import AsyncScorerClient, ScorerClient, ScoreResult
from sightline.scorer.v1 import scorer_pb2 as pb

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def scorer() -> RunningScorer:
    return shared()[0]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {name: Reference(path) for name, path in shared()[1].items()}


def with_alpha() -> Image.Image:
    image = picture(50, 40, seed=3)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(120, 50, seed=4), "JPEG", exif=exif)


FILES = {
    "png": encoded(picture(90, 70)),
    "odd jpeg": encoded(picture(333, 77, seed=1), "JPEG"),
    "tiny webp": encoded(picture(7, 13, seed=2), "WEBP"),
    "gif": encoded(picture(64, 64, seed=5), "GIF"),
    "grey": encoded(picture(40, 90).convert("L")),
    "palette": encoded(picture(80, 60).quantize(32)),
    "cmyk": encoded(picture(100, 75, seed=6).convert("CMYK"), "JPEG"),
    "alpha": encoded(with_alpha()),
    "exif": turned(),
    "large": encoded(picture(1600, 1200, seed=7), "JPEG"),
}


def as_a_person_sees_it(content: bytes) -> Image.Image:
    """Upright, on white, RGB: as the README says, before open_clip's own transform."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


@pytest.mark.parametrize("model", ["tiny", "siglip"])
@pytest.mark.parametrize("name", FILES)
def test_scores_are_open_clips(scorer: RunningScorer, references: dict[str, Reference], model: str, name: str) -> None:
    reference = references[model]
    expected = reference.cosines(as_a_person_sees_it(FILES[name]), SENTENCES)
    response = scorer.score(FILES[name], SENTENCES, model=model)
    np.testing.assert_allclose([s.cosine for s in response.scores], expected, atol=TOLERANCE)
    scale = float(reference.model.logit_scale.detach().exp())
    bias = float(reference.model.logit_bias.detach()) if model == "siglip" else 0.0
    np.testing.assert_allclose([s.logit for s in response.scores], scale * expected + bias, atol=scale * TOLERANCE)
    np.testing.assert_allclose(
        [s.clip_score for s in response.scores], 100 * np.maximum(expected, 0), atol=100 * TOLERANCE
    )
    assert expected.std() > 100 * TOLERANCE, "the test's model tells these texts apart"


def test_many_texts_of_many_lengths(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    """More texts than fit into one batch of Triton; the rows return in the texts' order."""
    texts = [("cat " * (1 + number % 70)) + str(number) for number in range(150)]
    response = scorer.score(FILES["png"], texts)
    expected = references["tiny"].cosines(picture(90, 70), texts)
    np.testing.assert_allclose([s.cosine for s in response.scores], expected, atol=TOLERANCE)


def test_requests_that_share_batches_do_not_mix(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    images = [picture(60, 50, seed=seed) for seed in range(12)]
    texts = [[f"{word} {number}" for word in ("cat", "dog", "a very long red bus " * 3)] for number in range(12)]

    def one(number: int) -> list[float]:
        return [s.cosine for s in scorer.score(encoded(images[number % 12]), texts[number % 12]).scores]

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(48)))
    for number in range(48):
        expected = references["tiny"].cosines(images[number % 12], texts[number % 12])
        np.testing.assert_allclose(found[number], expected, atol=TOLERANCE)


def test_a_long_text_is_the_mean_of_its_sentences(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    parts = [f"Here is sentence number {number}, about a cat." for number in range(12)]
    response = scorer.score(FILES["png"], ["short", " ".join(parts)])
    expected = references["tiny"].cosines(picture(90, 70), parts).mean()
    assert response.scores[1].cosine == pytest.approx(expected, abs=TOLERANCE)
    assert [score.parts for score in response.scores] == [1, 12]
    assert response.scores[1].token_count > 77


def test_a_response_says_what_gave_the_scores(scorer: RunningScorer) -> None:
    response = scorer.score(FILES["png"], ["a cat"])
    weights = (shared()[1]["tiny"] / "open_clip_model.safetensors").read_bytes()
    assert response.model.name == "tiny"
    assert response.model.is_default
    assert response.model.weights_digest == hashlib.sha256(weights).hexdigest()
    assert len(response.model.preprocessing_digest) == 64
    assert response.image_sha256 == hashlib.sha256(FILES["png"]).digest()
    assert response.scores[0].token_count == 4
    assert 0 < response.timing.total_seconds < 20
    assert response.timing.total_seconds >= response.timing.image_seconds


def test_the_sync_client(scorer: RunningScorer, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(FILES["png"])
    with ScorerClient(scorer.at.grpc) as client:
        result = client.score(path, SENTENCES)
        again = client.score(str(path), SENTENCES)
        listed = client.list_models()
    assert result.cosine.dtype == np.float32
    assert result.cosine.shape == result.parts.shape == (len(SENTENCES),)
    assert len(result) == len(SENTENCES)
    np.testing.assert_allclose(result.clip_score, 100 * np.maximum(result.cosine, 0), atol=1e-4)
    np.testing.assert_allclose(result.cosine, again.cosine, atol=1e-6)
    assert result.model == listed.default
    assert {model.name for model in listed.models} == {"tiny", "siglip"}
    assert listed.limits.max_image_pixels == 4_000_000
    assert result.image_sha256 == hashlib.sha256(FILES["png"]).hexdigest()


PAIRS = [(FILES["png"], [f"a cat {number}"]) if number % 5 else (b"junk", ["a cat"]) for number in range(40)]


def check_many(outcomes: list[object], one: ScoreResult) -> None:
    assert len(outcomes) == 40
    for number, outcome in enumerate(outcomes):
        if number % 5:
            assert isinstance(outcome, ScoreResult)
        else:
            assert isinstance(outcome, InvalidInput)
            assert outcome.reason == "IMAGE_UNREADABLE"
    assert isinstance(outcomes[7], ScoreResult)
    np.testing.assert_allclose(outcomes[7].cosine, one.cosine, atol=TOLERANCE)


def test_score_many_keeps_order_and_fails_item_by_item(scorer: RunningScorer, tmp_path: Path) -> None:
    with ScorerClient(scorer.at.grpc) as client:
        check_many(list(client.score_many(PAIRS, max_in_flight=7)), client.score(FILES["png"], ["a cat 7"]))
        missing = next(iter(client.score_many([(tmp_path / "nothing.png", ["a cat"])])))
        assert isinstance(missing, InvalidInput)
        assert "nothing.png" in str(missing)
        with pytest.raises(InvalidInput, match="one string"):
            client.score(FILES["png"], "a cat")


def test_the_async_client(scorer: RunningScorer) -> None:
    async def run() -> None:
        async with AsyncScorerClient(scorer.at.grpc) as client:
            one = await client.score(FILES["png"], ["a cat 7"])
            check_many([outcome async for outcome in client.score_many(PAIRS, max_in_flight=7)], one)
            assert (await client.list_models()).default.name == "tiny"

    asyncio.run(run())


def test_a_stream_answers_every_item_with_its_id(scorer: RunningScorer) -> None:
    def items() -> list[pb.ScoreStreamRequest]:
        return [
            pb.ScoreStreamRequest(id=1000 + number, request=pb.ScoreRequest(image=pb.Image(content=image), texts=texts))
            for number, (image, texts) in enumerate(PAIRS)
        ]

    answers = {answer.id: answer for answer in scorer.stub.ScoreStream(iter(items()), timeout=30)}
    assert sorted(answers) == list(range(1000, 1040))
    for number in range(40):
        answer = answers[1000 + number]
        if number % 5:
            assert len(answer.response.scores) == 1
        else:
            assert answer.error.reason == "IMAGE_UNREADABLE"
            assert answer.error.code == 3
            assert "JPEG" in answer.error.message
    assert list(scorer.stub.ScoreStream(iter([]), timeout=10)) == []
