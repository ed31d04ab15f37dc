"""Kinds of score, parts of texts, embeddings and the cache, over a real channel against a real Triton."""

import hashlib
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from scorer_models import SENTENCES, Reference, encoded, picture
from scorer_running import RunningScorer, shared
from sightline.errors import SightlineError, from_rpc_error
from sightline.scorer.v1 import scorer_pb2 as pb
from test_scorer_bad_input import metrics

IMAGE = encoded(picture(80, 60, seed=21))
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def scorer() -> RunningScorer:
    return shared()[0]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {name: Reference(path) for name, path in shared()[1].items()}


def values(response: pb.ScoreResponse) -> list[float]:
    return [score.value for score in response.scores]


def refused(call: Any) -> SightlineError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def test_each_kind_is_its_formula(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    reference = references["siglip"]
    cosine = reference.cosines(picture(80, 60, seed=21), SENTENCES)
    scale = reference.model.logit_scale.exp().item()
    logit = scale * cosine + reference.model.logit_bias.item()
    expected = {
        pb.SCORE_KIND_COSINE: cosine,
        pb.SCORE_KIND_CLIP_SCORE: 100 * np.maximum(cosine, 0),
        pb.SCORE_KIND_LOGIT: logit,
        pb.SCORE_KIND_PROBABILITY: 1 / (1 + np.exp(-logit)),
    }
    for kind, wanted in expected.items():
        response = scorer.score(IMAGE, SENTENCES, model="siglip", kind=kind)
        assert response.kind == kind
        np.testing.assert_allclose(values(response), wanted, atol=100 * TOLERANCE, rtol=1e-3)
    assert scorer.score(IMAGE, ["a"]).kind == pb.SCORE_KIND_CLIP_SCORE
    kinds = {model.name: set(model.kinds) for model in scorer.stub.ListModels(pb.ListModelsRequest()).models}
    assert kinds["siglip"] - kinds["tiny"] == {pb.SCORE_KIND_PROBABILITY}


def test_sentences_are_scored_and_aggregated(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    parts = ["There is a red square.", "There is a dog.", "It rains!"]
    cosine = references["tiny"].cosines(picture(80, 60, seed=21), parts)
    text = " ".join(parts)
    for how, wanted in (
        (pb.AGGREGATION_MEAN, cosine.mean()),
        (pb.AGGREGATION_MIN, cosine.min()),
        (pb.AGGREGATION_SUM, cosine.sum()),
    ):
        fields = {"unit": pb.TEXT_UNIT_SENTENCES, "aggregation": how, "kind": pb.SCORE_KIND_COSINE}
        score, other = scorer.score(IMAGE, [text, "a cat"], **fields).scores
        assert [part.text for part in score.part_scores] == parts
        np.testing.assert_allclose([part.value for part in score.part_scores], cosine, atol=TOLERANCE)
        assert score.value == pytest.approx(wanted, abs=TOLERANCE)
        assert score.cosine == pytest.approx(wanted, abs=TOLERANCE)
        assert (score.parts, other.parts) == (3, 1)
        assert not score.sentence_split


def test_phrases_make_the_mean_of_whole_and_parts(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    """F-CLIPScore is the mean of the CLIPScores of the caption and its nouns."""
    rows = ["a red square beside a dog", "red square", "dog"]
    cosine = references["tiny"].cosines(picture(80, 60, seed=21), rows)
    response = scorer.score(
        IMAGE,
        rows[:1],
        unit=pb.TEXT_UNIT_PHRASES,
        phrases=[pb.Phrases(phrases=rows[1:])],
        kind=pb.SCORE_KIND_CLIP_SCORE,
    )
    wanted = (100 * np.maximum(cosine, 0)).mean()
    assert response.scores[0].value == pytest.approx(wanted, abs=100 * TOLERANCE)
    assert [part.text for part in response.scores[0].part_scores] == rows


def test_an_over_long_sentence_is_scored_in_pieces_and_flagged(
    scorer: RunningScorer, references: dict[str, Reference]
) -> None:
    text = ", ".join(f"a {colour} square left of a dog" for colour in ("red", "blue", "green") * 6)
    (score,) = scorer.score(IMAGE, [text], kind=pb.SCORE_KIND_COSINE).scores
    assert score.sentence_split
    assert score.parts == len(score.part_scores) > 1
    assert all(part.token_count <= 77 for part in score.part_scores)
    pieces = [part.text for part in score.part_scores]
    cosine = references["tiny"].cosines(picture(80, 60, seed=21), pieces)
    assert score.value == pytest.approx(cosine.mean(), abs=TOLERANCE)


def test_captions_that_differ_late_differ_in_score(scorer: RunningScorer) -> None:
    """Peers truncate silently at 20 or 77 tokens; here the last word counts, also behind the window."""
    for words in (20, 60, 74, 90, 300):
        start = "a photo of " + " ".join(f"thing{n % 10}" for n in range(words // 2))
        one, other = scorer.score(IMAGE, [f"{start} and a red cat", f"{start} and a blue car"]).scores
        assert one.cosine != other.cosine, words


def test_images_of_one_size_never_share_a_score(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    """A peer's cache keys an image by its height; ours by its bytes."""
    pictures = [picture(64, 64, seed=seed) for seed in range(100, 112)]
    for _ in range(2):
        for one in pictures:
            expected = references["tiny"].cosines(one, SENTENCES)
            found = [score.cosine for score in scorer.score(encoded(one), SENTENCES).scores]
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_cut_jpeg_among_many_takes_out_only_itself(scorer: RunningScorer) -> None:
    """In peers it stops every later request, or half of the requests that share its batch."""
    good = [encoded(picture(70, 50, seed=seed), "JPEG") for seed in range(200, 215)]
    requests = [*good[:8], encoded(picture(300, 200, seed=9), "JPEG")[:3000], *good[8:]]

    def one(image: bytes) -> pb.ScoreResponse | SightlineError:
        try:
            return scorer.score(image, ["a cat"])
        except grpc.RpcError as error:
            return from_rpc_error(error)

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(one, requests))
    bad = [outcome for outcome in outcomes if isinstance(outcome, SightlineError)]
    assert [error.reason for error in bad] == ["IMAGE_DAMAGED"]
    assert isinstance(outcomes[8], SightlineError)
    assert len(scorer.score(good[0], ["a dog"]).scores) == 1


def test_what_was_scored_before_is_not_computed_again(scorer: RunningScorer) -> None:
    image, texts = encoded(picture(77, 66, seed=300)), [f"cache {n}" for n in range(6)]
    first = scorer.score(image, texts)
    before = metrics(scorer)
    again = scorer.score(image, texts)
    after = metrics(scorer)
    assert not first.timing.image_cached
    assert again.timing.image_cached
    assert again.timing.texts_cached == 6
    assert values(first) == values(again), "to the last bit"
    calls = [name for name in after if name.startswith("triton_calls_total")]
    assert sum(after[name] - before.get(name, 0) for name in calls) <= 2, "the probe's own at most"
    assert after['embeddings_total{model="tiny",outcome="hit",tower="text"}'] >= 6


def test_concurrent_equal_requests_are_one_computation(scorer: RunningScorer) -> None:
    image, text = encoded(picture(500, 400, seed=301), "JPEG"), ["an image that many ask for at once"]
    names = [
        f'embeddings_total{{model="tiny",outcome="{what}",tower="image"}}' for what in ("miss", "hit", "coalesced")
    ]

    def counts() -> list[float]:
        return [metrics(scorer).get(name, 0.0) for name in names]

    before = counts()
    calls = [scorer.stub.Score.future(pb.ScoreRequest(image=pb.Image(content=image), texts=text)) for _ in range(12)]
    deadline = time.monotonic() + 20
    while sum(counts()) - sum(before) < 2 and time.monotonic() < deadline:  # the first one alone would cancel its work
        time.sleep(0.01)
    calls[0].cancel()
    found = [call.result(timeout=20).scores[0].cosine for call in calls[1:]]
    assert len(set(found)) == 1
    assert counts()[0] - before[0] == 1


def test_pixels_reach_triton_by_shared_memory(scorer: RunningScorer) -> None:
    scorer.score(encoded(picture(40, 40, seed=302)), ["a"])
    assert metrics(scorer)['triton_calls_total{transport="shared_memory"}'] >= 1


@pytest.mark.parametrize("model", ["tiny", "siglip"])
def test_embeddings_are_open_clips(scorer: RunningScorer, references: dict[str, Reference], model: str) -> None:
    import torch

    reference = references[model]
    with torch.inference_mode():
        pixels = reference.preprocess(picture(80, 60, seed=21))[None]
        image = reference.model.encode_image(pixels, normalize=True).numpy()
        texts = reference.model.encode_text(reference.tokenizer(SENTENCES), normalize=True).numpy()
    asked = pb.EmbedRequest(
        images=[pb.Image(content=IMAGE), pb.Image(content=b"junk"), pb.Image(sha256=bytes(32))],
        texts=[*SENTENCES, " ", "<end_of_text>"],
        model=model,
    )
    answer = scorer.stub.Embed(asked, timeout=20)
    found = np.frombuffer(answer.images[0].embedding.values, "<f4")
    np.testing.assert_allclose(found, image[0], atol=TOLERANCE)
    assert answer.images[0].embedding.image_sha256 == hashlib.sha256(IMAGE).digest()
    assert [outcome.error.reason for outcome in answer.images[1:]] == ["IMAGE_UNREADABLE", "IMAGE_NOT_FOUND"]
    rows = [np.frombuffer(outcome.embedding.values, "<f4") for outcome in answer.texts[: len(SENTENCES)]]
    np.testing.assert_allclose(rows, texts, atol=TOLERANCE)
    assert [outcome.error.reason for outcome in answer.texts[-2:]] == ["TEXT_EMPTY", "TEXT_SPECIAL"]
    assert answer.texts[-1].error.metadata["text_index"] == str(len(SENTENCES) + 1)
    asked.format = pb.EMBEDDING_FORMAT_FLOAT16
    half = np.frombuffer(scorer.stub.Embed(asked, timeout=20).images[0].embedding.values, "<f2")
    np.testing.assert_allclose(half, image[0], atol=2e-3)
    assert answer.model.name == model


def test_a_long_text_has_the_mean_embedding_of_its_sentences(scorer: RunningScorer) -> None:
    parts = [f"This is sentence number {n} of a text." for n in range(12)]
    answer = scorer.stub.Embed(pb.EmbedRequest(texts=[" ".join(parts), *parts]), timeout=20)
    rows = np.array([np.frombuffer(outcome.embedding.values, "<f4") for outcome in answer.texts])
    mean = rows[1:].mean(0)
    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert answer.texts[0].embedding.parts == 12
    long = pb.EmbedRequest(texts=["a cat", " ".join(parts)], long_text=pb.LONG_TEXT_REJECT)
    outcome = scorer.stub.Embed(long, timeout=20).texts[1]
    assert (outcome.error.reason, outcome.error.metadata["text_index"]) == ("TEXT_TOO_LONG", "1")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (pb.EmbedRequest(), "NOTHING_TO_EMBED"),
        (pb.EmbedRequest(texts=["a"] * 1025), "TOO_MANY_TEXTS"),
        (pb.EmbedRequest(images=[pb.Image(content=b"a")] * 257), "TOO_MANY_IMAGES"),
        (pb.EmbedRequest(texts=["a"], format=9), "FORMAT_UNKNOWN"),
        (pb.EmbedRequest(texts=["a"], model="x"), "MODEL_NOT_FOUND"),
    ],
)
def test_bad_requests_for_embeddings(scorer: RunningScorer, asked: pb.EmbedRequest, reason: str) -> None:
    assert refused(lambda: scorer.stub.Embed(asked, timeout=5)).reason == reason


def test_a_reload_by_rpc_must_be_allowed(scorer: RunningScorer) -> None:
    error = refused(lambda: scorer.stub.ReloadModels(pb.ReloadModelsRequest(), timeout=5))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "RELOAD_NOT_ALLOWED")


def test_a_jpeg_is_seen_as_pillow_decodes_it_exactly(scorer: RunningScorer, references: dict[str, Reference]) -> None:
    """JPEGs are not decoded at a reduced size: the score equals that by open_clip's own transform."""
    content = encoded(picture(1500, 900, seed=303), "JPEG", quality=85)
    expected = references["tiny"].cosines(Image.open(io.BytesIO(content)).convert("RGB"), SENTENCES)
    found = [score.cosine for score in scorer.score(content, SENTENCES).scores]
    np.testing.assert_allclose(found, expected, atol=1e-5)
