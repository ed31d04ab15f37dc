"""A small but expensive request: its sender pays for it, not another caller, and not the event loop."""

import asyncio
import io
import threading
import zlib
from typing import Any

import grpc
import numpy as np
import pytest
from loop_steps import Steps
from PIL import Image
from scorer_models import encoded, picture
from scorer_running import RunningScorer, shared
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline_scorer.fair_pool import FairPool
from sightline_scorer.small_images import small_size

pytestmark = pytest.mark.field


def strip(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8) * 255
    return encoded(Image.fromarray(pixels).convert("1"))


def inflating(seed: int) -> bytes:
    """A PNG of 8 x 8 pixels whose texts inflate to 30 megabytes."""
    content = encoded(picture(8, 8, seed))
    body = b"key\0\0" + zlib.compress(bytes(1 << 20), 9)
    text = len(body).to_bytes(4, "big") + b"zTXt" + body + zlib.crc32(b"zTXt" + body).to_bytes(4, "big")
    return content[:33] + text * 29 + content[33:]


def scans(seed: int) -> bytes:
    """A progressive JPEG of 128 x 128 pixels with one of its scans a thousand times."""
    content = encoded(picture(128, 128, seed), "JPEG", progressive=True, quality=30)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 1000 + b"\xff\xd9"


def emoji(count: int, seed: int) -> str:
    return "".join(chr(0x1F600 + int(i)) for i in np.random.default_rng(seed).integers(0, 60, count))


def latin(count: int, seed: int) -> str:
    return "".join(chr(int(i)) for i in np.random.default_rng(seed).integers(0xC0, 0x17F, count))


def letters(count: int, seed: int) -> str:
    drawn = np.random.default_rng(seed).integers(97, 123, count)
    return " ".join("".join(map(chr, drawn[at : at + 64])) for at in range(0, count, 64))


DEAR: dict[str, Any] = {
    "strips": lambda: pb.EmbedRequest(images=[pb.Image(content=strip(1, 990, i)) for i in range(30)]),
    "inflating": lambda: pb.EmbedRequest(images=[pb.Image(content=inflating(i)) for i in range(10)]),
    "scans": lambda: pb.EmbedRequest(images=[pb.Image(content=scans(i)) for i in range(10)]),
    "small": lambda: pb.EmbedRequest(images=[pb.Image(content=encoded(picture(100, 100, i))) for i in range(200)]),
    "emoji": lambda: pb.EmbedRequest(texts=[emoji(2000, i) for i in range(8)]),
    "latin": lambda: pb.EmbedRequest(texts=[latin(4000, i) for i in range(4)]),
    "ascii": lambda: pb.EmbedRequest(texts=[letters(4000, i) for i in range(4)]),
    "score": lambda: pb.ScoreRequest(
        image=pb.Image(content=encoded(picture(30, 30, 7))), texts=[emoji(2000, 100 + i) for i in range(8)]
    ),
    "sentences": lambda: pb.ScoreRequest(
        image=pb.Image(content=encoded(picture(30, 30, 8))),
        texts=[latin(2000, 100 + i) for i in range(8)],
        unit=pb.TEXT_UNIT_SENTENCES,
    ),
}


@pytest.fixture(scope="module")
def scorer() -> RunningScorer:
    running, _ = shared()
    running.score(encoded(picture(90, 90, 1)), ["warm up"], seconds=60)
    return running


def loop_steps(running: RunningScorer) -> Any:
    """Measure steps of the service's event loop, not of this thread's."""
    loop_thread = running._thread.ident
    return Steps(lambda: threading.get_ident() == loop_thread)


@pytest.mark.parametrize("name", DEAR)
def test_a_stranger_is_answered_before_it_and_no_step_is_long(scorer: RunningScorer, name: str) -> None:
    request = DEAR[name]()
    order: list[str] = []

    async def main() -> None:
        async with grpc.aio.insecure_channel(scorer.at.grpc) as channel:
            stub: Any = scorer_pb2_grpc.ScorerServiceStub(channel)
            await stub.ListModels(pb.ListModelsRequest())

            async def dear() -> None:
                call = stub.Embed if isinstance(request, pb.EmbedRequest) else stub.Score
                await call(request, timeout=200)
                order.append("dear")

            async def stranger() -> None:
                await asyncio.sleep(0.02)  # the expensive one arrives first
                await stub.ListModels(pb.ListModelsRequest(), timeout=60)
                order.append("stranger")

            await asyncio.gather(dear(), stranger())

    with loop_steps(scorer) as steps:
        asyncio.run(main())
    # Small pictures, and texts that are skipped without inflating, may finish before the stranger's call.
    assert order[0] == "stranger" or name in ("small", "inflating")
    assert max(steps.seconds) < 0.05


def test_a_strangers_picture_takes_its_turn_before_the_rest(scorer: RunningScorer) -> None:
    """Requests take turns in the threads: a picture waits for one piece of an expensive request, not for all of it."""
    pool = FairPool(1, "test")
    order: list[str] = []
    gate = threading.Event()
    first = pool.submit("dear", lambda: gate.wait(30))
    many = [pool.submit("dear", lambda: order.append("dear")) for _ in range(20)]
    other = pool.submit("stranger", lambda: order.append("stranger"))
    cancelled = pool.submit("dear", lambda: order.append("never"))
    assert cancelled.cancel()
    gate.set()
    for future in (first, other, *many):
        future.result(30)
    assert order.index("stranger") <= 1
    assert order.count("dear") == 20
    pool.shutdown()


def test_a_deadline_is_looked_at_between_texts(scorer: RunningScorer) -> None:
    request = pb.ScoreRequest(
        image=pb.Image(content=encoded(picture(30, 30, 9))), texts=[latin(4000, 500 + i) for i in range(60)]
    )
    with pytest.raises(grpc.RpcError) as error:
        scorer.stub.Score(request, timeout=0.5)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    assert scorer.score(encoded(picture(90, 90, 2)), ["a stranger " * 200], seconds=60).scores


@pytest.mark.parametrize(
    ("content", "small"),
    [
        (encoded(picture(128, 128)), True),
        (encoded(picture(129, 128)), False),
        (encoded(picture(100, 80), "JPEG"), True),
        (encoded(picture(100, 80), "JPEG", progressive=True), False),
        (encoded(picture(100, 80), "WEBP"), False),
        (encoded(picture(100, 80), "GIF"), False),
        (inflating(0), False),
        (scans(0), False),
        (encoded(picture(100, 80))[:60], False),
        (b"", False),
        (b"\xff\xd8", False),
    ],
)
def test_small_is_only_what_certainly_is(content: bytes, small: bool) -> None:
    assert (small_size(content) is not None) == small
    if small:
        assert small_size(content) == Image.open(io.BytesIO(content)).size
