"""One image and K texts to K scores: the image and the texts go their ways at the same time, each once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sightline_chassis.errors import InvalidInput, NotFound, SightlineError

from sightline_scorer import metrics
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.settings import LimitSettings
from sightline_scorer.store import ImageStore
from sightline_scorer.texts import Tokenizer, TokenRows, check_texts
from sightline_scorer.triton.backend import Embeddings, TritonBackend, all_or_none
from sightline_scorer.triton.card import ModelCard
from sightline_scorer.v1 import scorer_pb2 as pb

T = TypeVar("T")

# Work shorter than a hop to a thread and back is done where it is.
_INLINE_TEXT_CHARACTERS = 4096
_INLINE_IMAGE_BYTES = 32 * 1024
_INLINE_IMAGE_PIXELS = 128 * 128


@dataclass(frozen=True)
class ServedModel:
    """A model and what its requests need before Triton."""

    card: ModelCard
    info: pb.ModelInfo
    preprocess: Preprocessor
    tokenizer: Tokenizer

    def observe(self, clip_score: npt.NDArray[np.float32]) -> None:
        """Count the scores in the model's histogram."""
        histogram = metrics.SCORE.labels(self.card.name)
        for value in clip_score.tolist():
            histogram.observe(value)


def cosines(image: Embeddings, texts: Embeddings, parts: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Cosine of an image [D] with each text, given its parts' embeddings [N, D]; the mean over a text's parts.

    All embeddings have length 1. Returns [K], K = len(parts), N = sum(parts).
    """
    each: npt.NDArray[Any] = texts @ image
    if len(each) != len(parts):
        each = np.add.reduceat(each, np.concatenate(([0], np.cumsum(parts)[:-1]))) / parts
    return each.clip(-1, 1).astype(np.float32)


def clip_scores(cosine: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """CLIPScore of Hessel et al. 2021 with weight 100: 100 * max(cosine, 0)."""
    return 100 * np.maximum(cosine, 0)


def logits(cosine: npt.NDArray[np.float32], scale: float, bias: float) -> npt.NDArray[np.float32]:
    """The model's own logit: scale * cosine + bias."""
    return (scale * cosine + bias).astype(np.float32)


class Scoring:
    """Answers score requests.

    Args:
        models: by name.
        default_model: name of the model for requests that name none.
        backend: gives embeddings.
        store: uploaded images.
        limits: what a request may hold.
        pool: threads for decoding and for long texts.
    """

    def __init__(
        self,
        models: dict[str, ServedModel],
        default_model: str,
        backend: TritonBackend,
        store: ImageStore,
        limits: LimitSettings,
        pool: Executor,
    ) -> None:
        self.models = models
        self._default_model = default_model
        self._backend = backend
        self._store = store
        self._limits = limits
        self._pool = pool
        self.last_success = float("-inf")
        """time.monotonic() of the last score that worked."""

    async def score(self, request: pb.ScoreRequest, seconds: float | None = None) -> pb.ScoreResponse:
        """The scores of one request. `seconds` is the time left; raises a SightlineError."""
        try:
            response = await self._score(request, None if seconds is None else time.monotonic() + seconds)
        except SightlineError as error:
            metrics.PAIRS.labels(error.code.name).inc(max(1, len(request.texts)))
            raise
        except asyncio.CancelledError:
            metrics.PAIRS.labels("CANCELLED").inc(max(1, len(request.texts)))
            raise
        metrics.PAIRS.labels("OK").inc(len(response.scores))
        self.last_success = time.monotonic()
        return response

    def model(self, name: str) -> ServedModel:
        """The model of that name, or the default one for an empty name. Raises NotFound listing the known ones."""
        found = self.models.get(name or self._default_model)
        if found is None:
            raise NotFound(
                f"there is no model {name!r}; known: {', '.join(sorted(self.models))}",
                reason="MODEL_NOT_FOUND",
                metadata={"model": name, "known": ",".join(sorted(self.models))},
            )
        return found

    async def _score(self, request: pb.ScoreRequest, deadline: float | None) -> pb.ScoreResponse:
        began = time.monotonic()
        model = self.model(request.model)
        texts = list(request.texts)
        check_texts(texts, self._limits)
        if request.long_text not in pb.LongText.values():
            raise InvalidInput(f"long_text {request.long_text} is not one of LongText", reason="LONG_TEXT_UNKNOWN")
        content = self._content(request.image)
        metrics.BATCH_TEXTS.observe(len(texts))
        (digest, image, timing), (rows, embeddings, timing.text_seconds) = await all_or_none(
            self._embed_image(model, content, deadline),
            self._embed_texts(model, texts, request.long_text, deadline),
        )
        cosine = cosines(image, embeddings, rows.parts)
        response = _response(cosine, rows, model.card)
        response.model.CopyFrom(model.info)
        response.image_sha256 = digest
        timing.total_seconds = time.monotonic() - began
        response.timing.CopyFrom(timing)
        model.observe(clip_scores(cosine))
        return response

    def _content(self, image: pb.Image) -> bytes:
        source = image.WhichOneof("source")
        if source is None:
            raise InvalidInput("the request has no image: set image.content or image.sha256", reason="IMAGE_MISSING")
        return image.content if source == "content" else self._store.get(image.sha256)

    async def _embed_image(
        self, model: ServedModel, content: bytes, deadline: float | None
    ) -> tuple[bytes, Embeddings, pb.Timing]:
        began = time.monotonic()
        try:
            digest, pixels = await self._pixels(model.preprocess, content)
        except InvalidInput as error:
            metrics.DECODE_FAILURES.labels(error.reason).inc()
            raise
        decoded = time.monotonic()
        embedding = await self._backend.embed_image(model.card.name, pixels, _left(deadline))
        ended = time.monotonic()
        metrics.STAGE_SECONDS.labels("decode").observe(decoded - began)
        metrics.STAGE_SECONDS.labels("image").observe(ended - decoded)
        return digest, embedding, pb.Timing(preprocess_seconds=decoded - began, image_seconds=ended - decoded)

    async def _pixels(self, preprocess: Preprocessor, content: bytes) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """SHA-256 of an encoded image, and its pixels."""
        if len(content) > _INLINE_IMAGE_BYTES:
            return await self._in_pool(lambda: (hashlib.sha256(content).digest(), preprocess(content)))
        digest = hashlib.sha256(content).digest()
        image = preprocess.read_header(content)
        if image.width * image.height <= _INLINE_IMAGE_PIXELS:
            return digest, preprocess.pixels(image)
        return digest, await self._in_pool(lambda: preprocess.pixels(image))

    async def _embed_texts(
        self, model: ServedModel, texts: list[str], long_text: pb.LongText, deadline: float | None
    ) -> tuple[TokenRows, Embeddings, float]:
        began = time.monotonic()
        if sum(map(len, texts)) <= _INLINE_TEXT_CHARACTERS:
            rows = model.tokenizer.rows(texts, long_text, self._limits)
        else:
            rows = await self._in_pool(lambda: model.tokenizer.rows(texts, long_text, self._limits))
        embeddings = await self._backend.embed_texts(model.card.name, rows.ids, rows.lengths, _left(deadline))
        seconds = time.monotonic() - began
        metrics.STAGE_SECONDS.labels("text").observe(seconds)
        return rows, embeddings, seconds

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _response(cosine: npt.NDArray[np.float32], rows: TokenRows, card: ModelCard) -> pb.ScoreResponse:
    columns = zip(
        cosine.tolist(),
        clip_scores(cosine).tolist(),
        logits(cosine, card.logit_scale, card.logit_bias).tolist(),
        rows.token_counts.tolist(),
        rows.parts.tolist(),
        strict=True,
    )
    return pb.ScoreResponse(
        scores=[
            pb.TextScore(cosine=c, clip_score=s, logit=logit, token_count=tokens, parts=parts)
            for c, s, logit, tokens, parts in columns
        ]
    )
