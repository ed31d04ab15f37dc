"""Embeddings for callers that want them: each image and text of a request has its own outcome.

An unavailable or full backend is not an item's own failure: the whole request fails and is retried.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np
import numpy.typing as npt
from sightline.errors import InvalidInput, Overloaded, SightlineError, Unavailable
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.embedder import Embedder, check_time, left
from sightline_scorer.models import ModelRegistry, ServedModel
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.texts import INLINE_COST, Plan, check_text, cost, finished, plan_texts
from sightline_scorer.tower import Wait

_FORMATS = {
    pb.EMBEDDING_FORMAT_UNSPECIFIED: ("<f4", pb.EMBEDDING_FORMAT_FLOAT32),
    pb.EMBEDDING_FORMAT_FLOAT32: ("<f4", pb.EMBEDDING_FORMAT_FLOAT32),
    pb.EMBEDDING_FORMAT_FLOAT16: ("<f2", pb.EMBEDDING_FORMAT_FLOAT16),
}


class EmbedRequests:
    """Answers Embed.

    Args:
        models: the served models.
        embedder: computes embeddings.
        limits: the limits of a request.
    """

    def __init__(self, models: ModelRegistry, embedder: Embedder, limits: ScorerLimits) -> None:
        self._models = models
        self._embedder = embedder
        self._limits = limits

    async def embed(self, request: pb.EmbedRequest, seconds: float | None = None) -> pb.EmbedResponse:
        """The outcomes of one request. Raises a SightlineError if the whole request is wrong."""
        deadline = None if seconds is None else time.monotonic() + seconds
        self._check(request)
        kind, encoding = _FORMATS[request.format]
        with self._models.find_model(request.model).used() as model:
            response = pb.EmbedResponse(model=model.info, format=encoding)
            images: list[tuple[bytes, Wait] | SightlineError] = []
            texts: list[tuple[Plan, Wait] | SightlineError] = []
            try:
                for image in request.images:
                    images.append(await self._begin_image(model, image, deadline))
                reject = request.long_text == pb.LONG_TEXT_REJECT
                inline = cost(request.texts) <= INLINE_COST
                for index, text in enumerate(request.texts):
                    texts.append(await self._begin_text(model, index, text, deadline, reject=reject, inline=inline))
                response.images.extend([await _image_outcome(begun, kind, deadline) for begun in images])
                response.texts.extend([await _text_outcome(begun, kind, deadline) for begun in texts])
            finally:
                for tower, waits in ((model.image, images), (model.text, texts)):
                    for begun in waits:
                        if not isinstance(begun, SightlineError):
                            tower.leave(begun[1])
        return response

    def _check(self, request: pb.EmbedRequest) -> None:
        limits = self._limits
        if not request.images and not request.texts:
            raise InvalidInput("the request has neither images nor texts: send at least one", reason="NOTHING_TO_EMBED")
        for count, most, name in (
            (len(request.images), limits.max_images, "images"),
            (len(request.texts), limits.max_texts, "texts"),
        ):
            if count > most:
                raise InvalidInput(
                    f"the request has {count} {name}, over the limit of {most}: send them in several requests",
                    reason=f"TOO_MANY_{name.upper()}",
                )
        if request.format not in _FORMATS:
            raise InvalidInput(f"format {request.format} is not one of EmbeddingFormat", reason="FORMAT_UNKNOWN")
        if request.long_text not in pb.LongText.values():
            raise InvalidInput(f"long_text {request.long_text} is not one of LongText", reason="LONG_TEXT_UNKNOWN")

    async def _begin_image(
        self, model: ServedModel, image: pb.Image, deadline: float | None
    ) -> tuple[bytes, Wait] | SightlineError:
        await asyncio.sleep(0)  # many small items add up: let other tasks run in between
        try:
            check_time(deadline)
            source = await self._embedder.source(image, deadline)
            return source.sha256, self._embedder.ask_image(model, source)
        except SightlineError as error:
            return _of_the_item(error)

    async def _begin_text(
        self, model: ServedModel, index: int, text: str, deadline: float | None, *, reject: bool, inline: bool
    ) -> tuple[Plan, Wait] | SightlineError:
        try:
            check_time(deadline)
            check_text(index, text, self._limits)
            unknown = self._embedder.unknown_texts(model)
            steps = plan_texts([text], model.tokenizer, self._limits, unknown, reject=reject, first=index)
            plan = finished(steps) if inline else await self._embedder.planned(steps, deadline)
            return plan, self._embedder.ask_texts(model, plan)
        except SightlineError as error:
            return _of_the_item(error)


async def _image_outcome(
    begun: tuple[bytes, Wait] | SightlineError, kind: str, deadline: float | None
) -> pb.EmbedOutcome:
    if isinstance(begun, SightlineError):
        return pb.EmbedOutcome(error=item_error(begun))
    sha256, wait = begun
    try:
        await wait.done(left(deadline))
    except SightlineError as error:
        return pb.EmbedOutcome(error=item_error(_of_the_item(error)))
    return pb.EmbedOutcome(embedding=pb.Embedding(values=_encoded(wait.rows[0], kind), image_sha256=sha256))


async def _text_outcome(
    begun: tuple[Plan, Wait] | SightlineError, kind: str, deadline: float | None
) -> pb.EmbedOutcome:
    if isinstance(begun, SightlineError):
        return pb.EmbedOutcome(error=item_error(begun))
    plan, wait = begun
    try:
        await wait.done(left(deadline))
    except SightlineError as error:
        return pb.EmbedOutcome(error=item_error(_of_the_item(error)))
    row = wait.rows[0]
    if len(wait.rows) > 1:
        mean = wait.rows.mean(axis=0)
        row = mean / max(float(np.linalg.norm(mean)), 1e-12)
    (tokens,) = plan.counts(wait.notes)
    return pb.EmbedOutcome(embedding=pb.Embedding(values=_encoded(row, kind), token_count=tokens, parts=len(wait.rows)))


def _of_the_item(error: SightlineError) -> SightlineError:
    """The error; raises it if it is the backend's, since each item would have it."""
    if isinstance(error, Unavailable | Overloaded) and error.reason.startswith(("BACKEND_", "MODEL_GONE")):
        raise error
    return error


def _encoded(row: npt.NDArray[np.float32], kind: str) -> bytes:
    return row.astype(kind).tobytes()


def item_error(error: SightlineError) -> pb.ItemError:
    """An error as one item's outcome."""
    return pb.ItemError(
        code=error.code.value[0],
        reason=error.reason,
        message=error.message,
        retry_after_seconds=error.retry_after or 0,
        metadata=error.metadata,
    )
