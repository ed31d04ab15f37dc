"""The sampler's contract: the right status and message for every bad request, and the service continues."""

import asyncio
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from odd_pictures import ODD
from PIL import Image
from sampler_models import PROMPT, Running, make_llava, png, running
from sightline import DeadlineExceeded, InvalidInput, NotFound, PreconditionFailed, SightlineError
from sightline.errors import typed_errors
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler import (
    AsyncSamplerClient,
    Beams,
    DiffusionNoise,
    ImageFree,
    Outcome,
    Pair,
    Probe,
    SamplerClient,
    Samples,
    TokenScores,
)
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1.sampler_pb2_grpc import SamplerServiceStub
from sightline.sampler.wire import probe_message

USER = {"role": "user", "content": "what is it ?"}
BOT = {"role": "assistant", "content": "a star ."}
IMAGE = {"type": "image"}

LIMITS = {
    "max_candidates": 32,
    "max_tokens": 200,
    "default_max_tokens": 20,
    "max_prompt_bytes": 1000,
    "max_images_pixels": 300_000,
    "max_image_bytes": 60_000,
    "max_image_pixels": 250_000,
}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(make_llava(tmp_path_factory.mktemp("llava")), limits=LIMITS) as at:
        yield at


@pytest.fixture(scope="module")
def client(sampler: Running) -> Iterator[SamplerClient]:
    with SamplerClient(sampler.address, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def stub(sampler: Running) -> Iterator[Any]:
    with grpc.insecure_channel(sampler.address) as channel:
        yield SamplerServiceStub(channel)


def flat(size: tuple[int, int], form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, form)
    return out.getvalue()


def closed() -> Image.Image:
    picture = Image.open(io.BytesIO(png(0)))
    picture.close()
    return picture


@pytest.mark.parametrize(
    ("changes", "error", "reason", "names"),
    [
        ({"n": 0}, InvalidInput, "BAD_NUM_CANDIDATES", r"num_candidates is 0; it must be in 1\.\.32"),
        ({"n": 10_000}, InvalidInput, "BAD_NUM_CANDIDATES", r"10000; it must be in 1\.\.32"),
        ({"n": -1}, InvalidInput, "MALFORMED_REQUEST", "cannot be built"),
        ({"n": 3, "seeds": [1, 2]}, InvalidInput, "BAD_SEEDS", "2 seeds for 3 candidates"),
        ({"seed": -1}, InvalidInput, "MALFORMED_REQUEST", "cannot be built"),
        ({"temperature": -0.5}, InvalidInput, "BAD_TEMPERATURE", "temperature is -0.5"),
        ({"temperature": 0.001}, InvalidInput, "BAD_TEMPERATURE", "must be 0"),
        ({"temperature": math.nan}, InvalidInput, "BAD_TEMPERATURE", "temperature is nan"),
        ({"top_p": 0.0}, InvalidInput, "BAD_TOP_P", r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"top_p": 1.5}, InvalidInput, "BAD_TOP_P", "top_p is 1.5"),
        ({"top_p": math.nan}, InvalidInput, "BAD_TOP_P", "top_p is nan"),
        ({"max_tokens": 0}, InvalidInput, "BAD_MAX_TOKENS", r"max_tokens is 0; it must be in 1\.\.200"),
        ({"max_tokens": 201}, InvalidInput, "BAD_MAX_TOKENS", "max_tokens is 201"),
        ({"prompt": ""}, InvalidInput, "PROMPT_EMPTY", "the prompt is empty"),
        ({"prompt": " \n"}, InvalidInput, "PROMPT_EMPTY", "the prompt is empty"),
        ({"prompt": "é" * 501}, InvalidInput, "PROMPT_TOO_LARGE", "1002 bytes; the limit is 1000"),
        ({"prompt": "red " * 240}, InvalidInput, "PROMPT_TOO_LONG", "260 tokens.*window is 256"),
        ({"prompt": "red " * 220, "max_tokens": 30}, InvalidInput, "PROMPT_TOO_LONG", "240 tokens.*30 more"),
        ({"prompt": "what is <image> ?"}, InvalidInput, "PROMPT_HAS_PLACEHOLDER", "'<image>'"),
        ({"prompt": "what </s> ?"}, InvalidInput, "PROMPT_HAS_SPECIAL_TOKEN", "'</s>'"),
        ({"prompt": "what \ud83d ?"}, InvalidInput, "TEXT_NOT_UNICODE", "half of a surrogate pair"),
        ({"min_p": 1.0}, InvalidInput, "BAD_MIN_P", r"min_p is 1.0; it must be in \[0, 1\)"),
        ({"stop": [""]}, InvalidInput, "BAD_STOP", "0 bytes"),
        ({"beams": Beams(3)}, InvalidInput, "BAD_BEAMS", "2 candidates cannot form 3 groups"),
        ({"distortion": DiffusionNoise(1000)}, InvalidInput, "BAD_DISTORTION", r"step is 1000; it must be in 0\.\.999"),
        ({"guidance": ImageFree(), "image": None}, InvalidInput, "BAD_GUIDANCE", "needs an image"),
        ({"image": [png(0)] * 17}, InvalidInput, "TOO_MANY_IMAGES", "17 images; at most 16 are allowed"),
        ({"image": [flat((400, 400))] * 2}, InvalidInput, "IMAGES_TOO_MANY_PIXELS", "more than 300000 pixels"),
        ({"prompt": [USER] * 65}, InvalidInput, "TOO_MANY_TURNS", "65 turns; at most 64 are allowed"),
        ({"prompt": [USER, BOT]}, InvalidInput, "BAD_TURNS", "the last turn must be the user's"),
        ({"prompt": [BOT, BOT | {"role": "system"}, USER]}, InvalidInput, "BAD_TURNS", r"turns\[1\] is the system's"),
        ({"prompt": [USER | {"role": "tool"}, USER]}, InvalidInput, "BAD_TURNS", "role 'tool'"),
        ({"prompt": [BOT | {"content": [IMAGE]}, USER]}, InvalidInput, "BAD_TURNS", "the user's turns"),
        (
            {"prompt": [USER | {"content": [IMAGE] * 2}, USER]},
            InvalidInput,
            "IMAGES_DO_NOT_FIT",
            "2 image placeholders",
        ),
        ({"prompt": [USER, BOT | {"content": " "}, USER]}, InvalidInput, "PROMPT_EMPTY", r"turns\[1\] is empty"),
        ({"prompt": [USER, BOT, USER | {"content": "a </s>"}]}, InvalidInput, "PROMPT_HAS_SPECIAL_TOKEN", "'</s>'"),
        ({"image": b""}, InvalidInput, "IMAGE_EMPTY", "0 bytes"),
        ({"image": "/nowhere/cat.jpg"}, InvalidInput, "IMAGE_FILE_UNREADABLE", "/nowhere/cat.jpg cannot be read"),
        ({"image": 17}, InvalidInput, "IMAGE_UNUSABLE", "a Pillow picture, .*, not int"),
        ({"image": closed()}, InvalidInput, "IMAGE_UNUSABLE", "the picture cannot be read"),
        ({"image": b"this is not a picture"}, InvalidInput, "IMAGE_UNREADABLE", "not a JPEG, PNG, WEBP.* or GIF file"),
        ({"image": png(0)[:200]}, InvalidInput, "IMAGE_DAMAGED", "damaged or ends early"),
        ({"image": flat((8, 8), "BMP")}, InvalidInput, "IMAGE_UNREADABLE", "not a JPEG"),
        ({"image": bytes(60_001)}, InvalidInput, "IMAGE_TOO_LARGE", "60001 bytes, over the limit of 60000"),
        ({"image": flat((501, 500))}, InvalidInput, "IMAGE_TOO_MANY_PIXELS", "501 x 500 = 250500 pixels"),
        ({"request_id": "x" * 201}, InvalidInput, "BAD_REQUEST_ID", "200"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_and_the_next_one_served(
    client: SamplerClient, changes: dict[str, Any], error: type[SightlineError], reason: str, names: str
) -> None:
    call: dict[str, Any] = {"image": png(0), "prompt": PROMPT, "n": 2, **changes}
    with pytest.raises(error, match=names) as caught:
        client.sample(**call)
    assert caught.value.reason == reason
    assert len(client.sample(png(0), PROMPT, 2).candidates) == 2


def test_the_smallest_and_the_largest_pictures_are_served(client: SamplerClient) -> None:
    for image in (flat((1, 1)), flat((500, 500), "JPEG"), flat((3, 400), "WEBP"), flat((20, 20), "GIF")):
        assert len(client.sample(image, PROMPT, 1, max_tokens=2).candidates) == 1


def test_every_odd_picture_is_the_one_that_it_shows(client: SamplerClient) -> None:
    """Through the whole sampler and its processor, a file and its pixels give the same log-probs."""
    different = set()
    for name, (content, shown) in ODD.items():
        if len(content) > LIMITS["max_image_bytes"]:
            continue
        asked, plain = (client.score_tokens(image, PROMPT, [5, 6, 7]).logprobs for image in (content, shown))
        assert asked.tolist() == plain.tolist(), name
        different.add(tuple(plain.tolist()))
    assert len(different) > 30  # else the model would not look


def test_a_picture_of_pillow_is_as_good_as_its_file(sampler: Running, client: SamplerClient) -> None:
    def picture() -> Image.Image:
        return Image.open(io.BytesIO(png(3)))

    async def by_async_client() -> tuple[Samples, TokenScores]:
        async with AsyncSamplerClient(sampler.address, timeout=30) as client:
            samples = await client.sample(picture(), PROMPT, 2, seed=1, max_tokens=6)
            return samples, await client.score_tokens(picture(), PROMPT, ids[0])

    def ids_of(samples: Samples) -> list[list[int]]:
        return [candidate.token_ids.tolist() for candidate in samples.candidates]

    ids = ids_of(client.sample(png(3), PROMPT, 2, seed=1, max_tokens=6))
    scores = client.score_tokens(png(3), PROMPT, ids[0])
    assert ids_of(client.sample(picture(), PROMPT, 2, seed=1, max_tokens=6)) == ids
    assert client.score_tokens(picture(), PROMPT, ids[0]).logprobs.tolist() == scores.logprobs.tolist()
    samples, scores_again = asyncio.run(by_async_client())
    assert ids_of(samples) == ids
    assert scores_again.logprobs.tolist() == scores.logprobs.tolist()


def test_many_pairs_have_the_candidates_that_each_has_alone(sampler: Running, client: SamplerClient) -> None:
    pairs: list[Pair] = [(png(n), PROMPT, {"n": n + 1, "seed": n}) for n in range(6)]
    alone = [client.sample(png(n), PROMPT, n + 1, seed=n, max_tokens=6) for n in range(6)]

    async def by_async_client() -> list[Outcome]:
        async with AsyncSamplerClient(sampler.address, timeout=30) as client:
            return [outcome async for outcome in client.sample_many(pairs, 1, max_in_flight=4, max_tokens=6)]

    for together in (list(client.sample_many(pairs, 1, max_in_flight=4, max_tokens=6)), asyncio.run(by_async_client())):
        for one, other in zip(alone, together, strict=True):
            assert isinstance(other, Samples)
            for mine, theirs in zip(one.candidates, other.candidates, strict=True):
                assert mine.token_ids.tolist() == theirs.token_ids.tolist()
                assert mine.seed == theirs.seed


def test_a_probe_takes_a_picture_of_pillow() -> None:
    picture = Image.open(io.BytesIO(png(3)))
    sent = probe_message(Probe(picture, PROMPT, [5], [-1.0])).image.content
    assert Image.open(io.BytesIO(sent)).tobytes() == picture.tobytes()


def test_a_prompt_up_to_the_window_is_served_and_default_lengths_end_there(client: SamplerClient) -> None:
    samples = client.sample(png(0), "red " * 228, 4, seed=1)
    assert samples.prompt_tokens == 248
    assert max(len(candidate.token_ids) for candidate in samples.candidates) <= 8
    assert max(len(c.token_ids) for c in client.sample(png(0), PROMPT, 4, seed=1).candidates) <= 20


@pytest.mark.parametrize(
    ("request_", "error", "reason"),
    [
        (pb.ScoreTokensRequest(prompt=PROMPT), InvalidInput, "NO_TOKENS"),
        (pb.ScoreTokensRequest(token_ids=[5]), InvalidInput, "PROMPT_EMPTY"),
        (pb.ScoreTokensRequest(prompt=PROMPT, token_ids=[5, 3]), InvalidInput, "BAD_TOKEN_ID"),
        (pb.ScoreTokensRequest(prompt=PROMPT, token_ids=[9999]), InvalidInput, "BAD_TOKEN_ID"),
        (pb.ScoreTokensRequest(prompt=PROMPT, token_ids=[5] * 250), InvalidInput, "PROMPT_TOO_LONG"),
        (pb.ScoreTokensRequest(prompt=PROMPT, token_ids=[5], image=pb.Image()), InvalidInput, "IMAGE_MISSING"),
        (
            pb.ScoreTokensRequest(prompt=PROMPT, token_ids=[5], policy=pb.PolicySelector(exact=3)),
            PreconditionFailed,
            "POLICY_NOT_SERVED",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scores_of_bad_tokens_are_refused(stub: Any, request_: Any, error: type[SightlineError], reason: str) -> None:
    with pytest.raises(error) as caught, typed_errors():
        stub.ScoreTokens(request_)
    assert caught.value.reason == reason


def test_images_by_digest(stub: Any) -> None:
    for digest, error in ((bytes(32), NotFound), (b"short", InvalidInput)):
        request = pb.SampleRequest(image=pb.Image(sha256=digest), prompt=PROMPT, num_candidates=1)
        with pytest.raises(error), typed_errors():
            list(stub.Sample(request))


def test_capabilities_say_what_holds(client: SamplerClient) -> None:
    found = client.policies()
    assert found.active.version == 0
    able = found.capabilities
    assert (able.logprobs, able.logprob_dtype, able.seeds, able.token_ids) == ("both", "float32", True, True)
    assert (able.lora, able.full, able.multi_version, able.prefix_shared) == ("hot", "hot", True, True)
    assert (able.max_candidates, able.max_tokens, able.max_image_bytes, able.max_image_pixels) == (
        32, 200, 60_000, 250_000,
    )  # fmt: skip
    assert able.engine.startswith("transformers ")
    assert able.picture_rule == PICTURE_RULE


def rows(sampler: Running) -> int:
    engine = sampler.service.engine
    return engine.rows() + engine.waiting()


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


def test_a_cancelled_call_frees_its_rows(sampler: Running, client: SamplerClient) -> None:
    """Its rows leave at the next step, not when its candidates would have ended."""

    async def run() -> None:
        async with AsyncSamplerClient(sampler.address) as client:
            calls = [client.stream(png(i), PROMPT, 32, max_tokens=200, temperature=100) for i in range(8)]
            asked = [asyncio.ensure_future(anext(aiter(call))) for call in calls]
            await asyncio.gather(*asked)
            assert rows(sampler) > 50
            for call in calls:
                call.close()
            await asyncio.to_thread(wait_for, lambda: rows(sampler) == 0, 2.0)

    asyncio.run(run())
    assert sampler.service.policies._loaded.entry(0).users == 0
    assert len(client.sample(png(0), PROMPT, 2).candidates) == 2


def test_a_deadline_ends_the_call_and_frees_its_rows(sampler: Running, client: SamplerClient) -> None:
    with pytest.raises(DeadlineExceeded):
        client.sample(png(0), PROMPT, 32, max_tokens=200, temperature=100, timeout=0.05)
    wait_for(lambda: rows(sampler) == 0)


def test_a_stream_may_be_left_early(sampler: Running, client: SamplerClient) -> None:
    with client.stream(png(0), PROMPT, 32, max_tokens=200, temperature=100) as stream:
        next(iter(stream))
    wait_for(lambda: rows(sampler) == 0)


def test_metrics_are_shown(sampler: Running, client: SamplerClient) -> None:
    import urllib.request

    def read() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{sampler.addresses.metrics}/metrics") as response:
            lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = read()
    samples = client.sample(png(0), PROMPT, 4, seed=2, max_tokens=20)
    after = read()
    moved = {name: after[name] - before.get(name, 0) for name in after}
    reasons = [candidate.finish_reason for candidate in samples.candidates]
    for reason in ("eos", "length"):
        name = f'sightline_sampler_generations_total{{finish_reason="{reason}"}}'
        assert moved[name] == reasons.count(reason)
    sampled = sum(len(candidate.token_ids) for candidate in samples.candidates)
    assert moved['sightline_sampler_tokens_total{kind="output"}'] == sampled
    assert moved['sightline_sampler_tokens_total{kind="prompt"}'] == 24
    assert moved["sightline_sampler_output_tokens_count"] == 4
    assert moved["sightline_sampler_candidates_per_prompt_sum"] == 4
    assert moved["sightline_sampler_step_rows_count"] >= 1
    assert after["sightline_sampler_policy_version"] == 0
    assert after["sightline_sampler_policies_loaded"] == 1
    assert after["sightline_sampler_rows"] == 0


def test_settings_are_checked_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sightline_sampler.server import main

    assert main(None, ["engine.modle=x"]) == 2
    assert "engine.modle is unknown (did you mean engine.model?)" in capsys.readouterr().err
    with pytest.raises(PreconditionFailed, match="there is no directory"), running(tmp_path / "nowhere"):
        pass
