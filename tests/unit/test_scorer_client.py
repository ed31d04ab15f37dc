"""The SDK when the service is away, busy or has dropped images, and how it sends many items."""

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chassis_certificates import Authority, put
from scorer_scripted import Scripted, scripted
from sightline.channel import Tls, Token
from sightline.errors import DeadlineExceeded, InvalidInput, Overloaded, SightlineError, Unavailable
from sightline.patience import ONCE, Patience
from sightline.scorer import (
    AsyncScorerClient,
    Embedding,
    ImageDigest,
    Outcome,
    Pair,
    ScorerClient,
    ScoreResult,
)

FAST = Patience(first_delay=0.01, max_delay=0.02, per_second=1000, burst=1000)
PICTURE = bytes(range(256)) * 40  # no image, but the scripted scorer does not look


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


class Both:
    """The same calls through the sync and the async client."""

    def __init__(self, kind: str, target: str) -> None:
        self.kind, self.target = kind, target

    def score(self, *args: Any, patience: Patience = FAST, **options: Any) -> ScoreResult:
        async def run() -> ScoreResult:
            async with AsyncScorerClient(self.target, patience=patience) as client:
                return await client.score(*args, **options)

        if self.kind == "async":
            return asyncio.run(run())
        with ScorerClient(self.target, patience=patience) as client:
            return client.score(*args, **options)

    def many(self, pairs: list[Pair], **options: Any) -> list[Outcome]:
        async def run() -> list[Outcome]:
            async with AsyncScorerClient(self.target, patience=FAST) as client:
                return [outcome async for outcome in client.score_many(pairs, **options)]

        if self.kind == "async":
            return asyncio.run(run())
        with ScorerClient(self.target, patience=FAST) as client:
            return list(client.score_many(pairs, **options))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, there: tuple[Scripted, str]) -> Both:
    return Both(request.param, there[1])


@pytest.mark.parametrize("order", ["away 7", "busy 7"])
def test_a_service_that_is_away_or_busy_is_asked_again(there: tuple[Scripted, str], client: Both, order: str) -> None:
    assert client.score(PICTURE, [order], timeout=20).value.tolist() == [1]
    assert there[0].tries[order] == 8  # more than gRPC's own five


def test_what_helps_no_retry_is_asked_once(there: tuple[Scripted, str], client: Both) -> None:
    with pytest.raises(InvalidInput, match="refused"):
        client.score(PICTURE, ["refuse"])
    with pytest.raises(Overloaded, match="for good"):
        client.score(PICTURE, ["full"])
    with pytest.raises(Unavailable):
        client.score(PICTURE, ["away 1"], patience=ONCE)
    assert dict(there[0].tries) == {"refuse": 1, "full": 1, "away 1": 1}


def test_the_deadline_ends_the_retries_with_the_reason_for_them(there: tuple[Scripted, str], client: Both) -> None:
    there[0].retry_after = 0.05
    with pytest.raises(Unavailable) as caught:
        client.score(PICTURE, ["away 100000"], timeout=0.6)
    assert int(caught.value.metadata["tries"]) > 1
    assert "tries in" in caught.value.__notes__[0]
    with pytest.raises(DeadlineExceeded):
        client.score(PICTURE, ["sleep 5"], timeout=0.2)
    assert there[0].tries["sleep 5"] == 1


def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(there: tuple[Scripted, str], client: Both) -> None:
    there[0].retry_after = 1000
    with pytest.raises(Overloaded) as caught:
        client.score(PICTURE, ["busy 1"], timeout=500)
    assert caught.value.retry_after == 1000


def test_the_budget_bounds_what_a_struggling_service_gets(there: tuple[Scripted, str]) -> None:
    patience = Patience(first_delay=0.001, max_delay=0.001, per_second=10, burst=5)
    with ScorerClient(there[1], patience=patience) as client:
        outcomes = list(client.score_many([(PICTURE, [f"away {n}000"]) for n in range(1, 11)], timeout=1.5))
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    # First tries, the burst, and ten a second for as long as the calls could last.
    assert 10 < sum(there[0].tries.values()) <= 10 + 5 + 10 * 1.5 + 5


def test_many_come_in_order_each_with_its_own_outcome(client: Both) -> None:
    pairs: list[Pair] = [(PICTURE, [f"ok {n}"]) if n % 3 else (PICTURE, ["refuse"]) for n in range(30)]
    pairs[4] = (PICTURE, ["sleep 0.2"])
    pairs[5] = ("/nowhere/at/all.png", ["ok 5"])
    pairs[7] = (PICTURE, ["ok 7", 3])  # type: ignore[list-item]
    heard: list[tuple[int, int | None]] = []
    outcomes = client.many(pairs, max_in_flight=8, progress=lambda done, of: heard.append((done, of)))
    assert heard == [(n + 1, 30) for n in range(30)]
    for n, outcome in enumerate(outcomes):
        if n in (5, 7) or n % 3 == 0:
            assert isinstance(outcome, InvalidInput), n
        elif n != 4:
            assert isinstance(outcome, ScoreResult)
            assert outcome.value.tolist() == [n]


def test_an_image_that_recurs_travels_once(there: tuple[Scripted, str], client: Both) -> None:
    outcomes = client.many([(PICTURE, [f"ok {n}"]) for n in range(40)], max_in_flight=8)
    assert [outcome.value[0] for outcome in outcomes if isinstance(outcome, ScoreResult)] == list(range(40))
    assert there[0].image_bytes == len(PICTURE)
    assert there[0].seen["upload"] == 1
    assert there[0].seen["content"] == 0


def test_images_that_the_service_holds_are_not_sent(there: tuple[Scripted, str], client: Both) -> None:
    others = [bytes([n]) * 5000 for n in range(6)]
    with ScorerClient(there[1]) as uploader:
        digests = uploader.upload([*others, others[0]])
        assert [type(digest) for digest in digests] == [ImageDigest] * 7
        assert digests[0] == digests[6]
        assert there[0].image_bytes == 6 * 5000
        uploader.upload(others)
        assert uploader.score(digests[3], ["ok 3"]).value.tolist() == [3]
    outcomes = client.many([(other, ["ok 1"]) for other in others])
    assert len([outcome for outcome in outcomes if isinstance(outcome, ScoreResult)]) == 6
    assert there[0].image_bytes == 6 * 5000


def test_single_images_go_with_their_request(there: tuple[Scripted, str], client: Both) -> None:
    assert len(client.many([(bytes([n]) * 5000, ["ok 1"]) for n in range(6)])) == 6
    assert there[0].seen["content"] == 6
    assert there[0].seen["upload"] == 0


def test_an_image_that_was_lost_is_sent_again(there: tuple[Scripted, str], client: Both) -> None:
    """The service evicted it, or the upload went to another replica."""
    there[0].forgetful = True
    outcomes = client.many([(PICTURE, [f"ok {n}"]) for n in range(10)])
    assert [outcome.value[0] for outcome in outcomes if isinstance(outcome, ScoreResult)] == list(range(10))
    assert there[0].seen["content"] == 10


def test_a_large_image_is_uploaded_in_pieces(there: tuple[Scripted, str], client: Both) -> None:
    large = bytes(1_000_001)
    client.many([(large, ["ok 1"]), (large, ["ok 2"])])
    assert large in there[0].store.values()


def test_no_more_than_asked_for_is_in_flight_or_read(there: tuple[Scripted, str]) -> None:
    read = 0

    def pairs() -> Iterator[Pair]:
        nonlocal read
        for n in range(40):
            read += 1
            yield (bytes([n]) * 10, ["sleep 0.01"])

    with ScorerClient(there[1]) as client:
        for done, _ in enumerate(client.score_many(pairs(), max_in_flight=6), 1):
            assert read - done <= 6
    assert there[0].most_running <= 6


def test_who_stops_listening_stops_the_calls(there: tuple[Scripted, str]) -> None:
    with ScorerClient(there[1]) as client:
        outcomes = client.score_many([(PICTURE[:9], ["ok 1"]), *[(PICTURE[:9], ["sleep 60"])] * 7], max_in_flight=8)
        next(iter(outcomes))
        _eventually(lambda: there[0].tries["sleep 60"] == 7)
        outcomes.close()  # type: ignore[attr-defined]
        _eventually(lambda: there[0].cancelled == 7)


def test_an_async_listener_that_leaves_stops_the_calls(there: tuple[Scripted, str]) -> None:
    async def run() -> None:
        async with AsyncScorerClient(there[1]) as client:
            outcomes = client.score_many([(PICTURE[:9], ["ok 1"]), *[(PICTURE[:9], ["sleep 60"])] * 7], max_in_flight=8)
            await anext(aiter(outcomes))
            await asyncio.to_thread(_eventually, lambda: there[0].tries["sleep 60"] == 7)
            await outcomes.aclose()  # type: ignore[attr-defined]
            await asyncio.to_thread(_eventually, lambda: there[0].cancelled == 7)

    asyncio.run(run())


def test_a_client_serves_many_threads(there: tuple[Scripted, str]) -> None:
    found: dict[int, float] = {}

    def ask(n: int) -> None:
        found[n] = float(client.score(PICTURE, [f"ok {n}"]).value[0])

    with ScorerClient(there[1]) as client:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {n: n for n in range(16)}


def test_embeddings_are_numpy_and_fail_item_by_item(there: tuple[Scripted, str]) -> None:
    with ScorerClient(there[1]) as client:
        images = [bytes([n + 1]) for n in range(40)]
        images[3] = b"bad"
        result = client.embed(images, ["abc", "a"])
        assert there[0].seen["embed"] == 3
        assert len(result.images) == 40
        assert isinstance(result.images[3], InvalidInput)
        last = result.images[39]
        assert isinstance(last, Embedding)
        np.testing.assert_allclose(last.vector, [40, 0.1], rtol=1e-6)
        np.testing.assert_allclose(result.text_matrix(), [[3, 0.1], [1, 0.1]], rtol=1e-6)
        with pytest.raises(InvalidInput, match="no image"):
            result.image_matrix()
        half = client.embed(texts=["ab"], half=True).text_matrix()
        assert half.dtype == np.float32
        np.testing.assert_array_equal(half, np.float16([[2, 0.1]]))

    async def run() -> Any:
        async with AsyncScorerClient(there[1]) as client:
            return await client.embed(images, ["abc", "a"])

    again = asyncio.run(run())
    np.testing.assert_array_equal(again.text_matrix(), result.text_matrix())


@pytest.mark.parametrize(
    ("image", "texts", "options", "reason"),
    [
        (b"x", "one string", {}, "TEXTS_NOT_A_LIST"),
        (b"x", ["a", 3], {}, "TEXT_NOT_A_STRING"),
        (b"x", ["a\ud800"], {}, "TEXT_NOT_UNICODE"),
        (b"x", ["a"], {"kind": "clipscore"}, "KIND_UNKNOWN"),
        (b"x", ["a"], {"long_text": "cut"}, "LONG_TEXT_UNKNOWN"),
        (b"x", ["a"], {"unit": "word"}, "UNIT_UNKNOWN"),
        (b"x", ["a"], {"aggregation": "max"}, "AGGREGATION_UNKNOWN"),
        (b"x", ["a"], {"phrases": []}, "PHRASES_MISMATCH"),
        (b"x", ["a"], {"phrases": ["cat"]}, "TEXTS_NOT_A_LIST"),
        (Path("/nowhere/at/all.png"), ["a"], {}, "IMAGE_FILE_UNREADABLE"),
        ("a\0b", ["a"], {}, "IMAGE_FILE_UNREADABLE"),
        (17, ["a"], {}, "IMAGE_UNUSABLE"),
    ],
)
def test_what_cannot_be_sent_is_refused_here(
    client: Both, image: Any, texts: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.score(image, texts, **options)
    assert caught.value.reason == reason


def test_a_digest_has_64_digits() -> None:
    with pytest.raises(InvalidInput, match="64 hexadecimal"):
        ImageDigest("abc")


def test_calls_are_encrypted_and_carry_the_token(tmp_path: Path) -> None:
    authority = Authority("tests")
    signed = authority.sign("service")
    tls = Tls(put(tmp_path / "ca.crt", authority.pem))
    token = Token(file=put(tmp_path / "token", b"from-a-file\n"))

    async def run(target: str) -> ScoreResult:
        async with AsyncScorerClient(target, tls=tls, token=token) as client:
            return await client.score(PICTURE, ["ok 2"], timeout=30)

    with scripted(grpc.ssl_server_credentials([(signed.key, signed.certificate)])) as (scorer, target):
        with ScorerClient(target, tls=tls, token="s3cret") as client:
            assert client.score(PICTURE, ["ok 1"], timeout=30).value.tolist() == [1]
        assert asyncio.run(run(target)).value.tolist() == [2]
        assert scorer.seen["Bearer s3cret"] == scorer.seen["Bearer from-a-file"] == 1
        with ScorerClient(target) as client, pytest.raises(Unavailable):
            client.score(PICTURE, ["ok 1"], timeout=2)


def test_a_pillow_picture_travels_without_loss(there: tuple[Scripted, str]) -> None:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    with ScorerClient(there[1]) as client:
        (digest,) = client.upload([picture])
    assert isinstance(digest, ImageDigest)
    sent = Image.open(io.BytesIO(there[0].store[bytes.fromhex(digest.sha256)]))
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(picture))


def test_a_closed_client_tries_no_more(there: tuple[Scripted, str]) -> None:
    there[0].retry_after = 0.2
    client = ScorerClient(there[1])
    caught: list[Exception] = []

    def ask() -> None:
        try:
            client.score(PICTURE, ["away 100000"])
        except (SightlineError, ValueError) as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    _eventually(lambda: there[0].tries["away 100000"])
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert caught


def _eventually(what: Any) -> None:
    for _ in range(3000):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("not within 30 s")
