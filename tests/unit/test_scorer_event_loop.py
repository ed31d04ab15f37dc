"""Slow texts are tokenised outside the event loop, so that callers do not wait for one another."""

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_scorer.cache import EmbeddingTable
from sightline_scorer.embed_request import EmbedRequests
from sightline_scorer.embedder import Embedder
from sightline_scorer.fair_pool import FairPool
from sightline_scorer.formulas import Scale
from sightline_scorer.models import ModelRegistry, ServedModel
from sightline_scorer.score_request import Scoring
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.tokens import TokenRow
from sightline_scorer.tower import Tower

IMAGE = b"an image that is known"
LONG = ["word " * 1600] * 3
UNIT = np.array([1, 0], np.float32)


class Tokenizer:
    """Records the threads in which it worked."""

    window = 77

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def encode(self, texts: Sequence[str], indices: Sequence[int]) -> list[TokenRow]:
        self.threads.add(threading.get_ident())
        return [TokenRow([1], 1) for _ in texts]


async def embeddings(payloads: list[Any]) -> np.ndarray:
    return np.stack([UNIT] * len(payloads))


def tower(name: str) -> Tower:
    return Tower(EmbeddingTable(2, 10_000, "m", name), embeddings, ("m", name), batch=8, tokens=0, in_flight=1,
                 max_waiting=100)  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "elsewhere"),
    [
        (pb.ScoreRequest(texts=["short"]), False),
        (pb.ScoreRequest(texts=LONG), True),
        (pb.ScoreRequest(texts=["short"], unit=pb.TEXT_UNIT_PHRASES, phrases=[pb.Phrases(phrases=LONG)]), True),
        (pb.EmbedRequest(texts=["short"]), False),
        (pb.EmbedRequest(texts=LONG), True),
    ],
)
def test_the_event_loop_tokenises_only_what_is_short(request_: Any, elsewhere: bool) -> None:
    tokenizer, limits = Tokenizer(), ScorerLimits()
    card: Any = SimpleNamespace(name="m", trim_padding=True)
    scale = Scale("m", 1, 0, False)
    anything: Any = None

    async def answer(pool: FairPool) -> Any:
        served = ServedModel(
            card=card,
            told=card,
            info=pb.ModelInfo(name="m", default_kind=pb.SCORE_KIND_CLIP_SCORE),
            scale=scale,
            preprocess=anything,
            tokenizer=tokenizer,  # type: ignore[arg-type]
            image=tower("image"),
            text=tower("text"),
            triton_names=("i", "t"),
            fingerprint="",
        )
        served.image.table.put(hashlib.sha256(IMAGE).digest(), UNIT, 0)
        models, embedder = ModelRegistry({"m": served}, {}, "m"), Embedder(anything, anything, pool)
        if isinstance(request_, pb.EmbedRequest):
            return await EmbedRequests(models, embedder, limits).embed(request_)
        request_.image.content = IMAGE
        return await Scoring(models, embedder, limits).score(request_)

    pool = FairPool(1, "tokenise")
    found = asyncio.run(answer(pool))
    pool.shutdown()
    rows = found.scores if isinstance(request_, pb.ScoreRequest) else found.texts
    assert len(rows) == len(request_.texts)
    assert (threading.get_ident() not in tokenizer.threads) == elsewhere
