"""One image and K texts to K scores, by one model or the weighted mean of several."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from sightline.errors import SightlineError
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer import metrics
from sightline_scorer.embedder import Embedder
from sightline_scorer.joint import JointModel
from sightline_scorer.models import AnyModel, Ensemble, ModelRegistry
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.texts import check_request
from sightline_scorer.work import ClipWork, JointWork, ModelWork


class Scoring:
    """Answers score requests.

    Args:
        models: the served models.
        embedder: computes embeddings.
        limits: the limits of a request.
    """

    def __init__(self, models: ModelRegistry, embedder: Embedder, limits: ScorerLimits) -> None:
        self.models = models
        self.embedder = embedder
        self._limits = limits

    async def score(self, request: pb.ScoreRequest, seconds: float | None = None) -> pb.ScoreResponse:
        """The scores of one request. `seconds` is the remaining time; raises a SightlineError."""
        try:
            response = await self._score(request, None if seconds is None else time.monotonic() + seconds)
        except SightlineError as error:
            metrics.PAIRS.labels(error.code.name).inc(max(1, len(request.texts)))
            raise
        except asyncio.CancelledError:
            metrics.PAIRS.labels("CANCELLED").inc(max(1, len(request.texts)))
            raise
        metrics.PAIRS.labels("OK").inc(len(response.scores))
        return response

    async def _score(self, request: pb.ScoreRequest, deadline: float | None) -> pb.ScoreResponse:
        began = time.monotonic()
        found = self.models.find(request.model)
        check_request(request, self._limits)
        kind = _kind(request.kind, found)
        with ExitStack() as stack:
            members = self.models.members(found)
            for model in members:
                stack.enter_context(model.used())
            for member in members:
                member.scale.check(kind)
            source = await self.embedder.source(request.image, deadline)
            metrics.BATCH_TEXTS.observe(len(request.texts))
            works = [_work(self.embedder, member, request, kind) for member in members]
            try:
                for work in works:
                    await work.begin(source, self._limits, deadline)
                responses = [await work.finish(deadline) for work in works]
            finally:
                for work in works:
                    work.leave()
            response = _mean(responses, found) if isinstance(found, Ensemble) else responses[0]
            response.model.CopyFrom(self.models.info(found))
        response.kind = kind
        response.image_sha256 = source.sha256
        response.timing.total_seconds = time.monotonic() - began
        return response


def _work(embedder: Embedder, model: AnyModel, request: pb.ScoreRequest, kind: pb.ScoreKind) -> ModelWork:
    if isinstance(model, JointModel):
        return JointWork(embedder, model, request, kind)
    return ClipWork(embedder, model, request, kind)


def _kind(asked: pb.ScoreKind, found: AnyModel | Ensemble) -> pb.ScoreKind:
    if asked != pb.SCORE_KIND_UNSPECIFIED:
        return asked
    return found.kind if isinstance(found, Ensemble) else found.info.default_kind


def _mean(responses: list[pb.ScoreResponse], ensemble: Ensemble) -> pb.ScoreResponse:
    """The weighted mean of the members' responses; also of the parts, if all members have the same ones."""
    weights = list(ensemble.weights.values())
    response = pb.ScoreResponse()
    response.CopyFrom(responses[0])
    for index, score in enumerate(response.scores):
        members = [other.scores[index] for other in responses]
        for name in ("cosine", "clip_score", "logit", "value"):
            setattr(score, name, _weighted([getattr(member, name) for member in members], weights))
        score.sentence_split = any(member.sentence_split for member in members)
        if any([p.text for p in member.part_scores] != [p.text for p in score.part_scores] for member in members):
            del score.part_scores[:]
            continue
        for number, part in enumerate(score.part_scores):
            for name in ("value", "cosine"):
                setattr(part, name, _weighted([getattr(m.part_scores[number], name) for m in members], weights))
    for other in responses[1:]:
        for name in ("preprocess_seconds", "image_seconds", "text_seconds"):
            setattr(response.timing, name, max(getattr(response.timing, name), getattr(other.timing, name)))
        response.timing.image_cached &= other.timing.image_cached
        response.timing.texts_cached = min(response.timing.texts_cached, other.timing.texts_cached)
    return response


def _weighted(values: list[float], weights: list[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))
