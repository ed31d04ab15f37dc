"""One image and K texts to K scores, by one model or the weighted mean of several."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import numpy as np
from sightline.errors import SightlineError
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer import metrics
from sightline_scorer.embedder import Embedder, ImageSource, check_time, left
from sightline_scorer.formulas import Floats, aggregate, check_finite, cosines, group_means
from sightline_scorer.models import Ensemble, ModelRegistry, ServedModel
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.texts import INLINE_COST, Plan, check_request, cost, finished, plan_request
from sightline_scorer.tower import Wait

_COLUMNS = (pb.SCORE_KIND_COSINE, pb.SCORE_KIND_CLIP_SCORE, pb.SCORE_KIND_LOGIT)


class Scoring:
    """Answers score requests.

    Args:
        models: what can be asked for.
        embedder: gives embeddings.
        limits: what a request may hold.
    """

    def __init__(self, models: ModelRegistry, embedder: Embedder, limits: ScorerLimits) -> None:
        self.models = models
        self.embedder = embedder
        self._limits = limits

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
        return response

    async def _score(self, request: pb.ScoreRequest, deadline: float | None) -> pb.ScoreResponse:
        began = time.monotonic()
        found = self.models.find(request.model)
        check_request(request, self._limits)
        kind = _kind(request.kind, found)
        with ExitStack() as stack:
            members = [stack.enter_context(model.used()) for model in self._members(found)]
            for member in members:
                member.scale.check(kind)
            source = await self.embedder.source(request.image, deadline)
            metrics.BATCH_TEXTS.observe(len(request.texts))
            works = [_Work(self.embedder, member, request, kind) for member in members]
            try:
                for work in works:
                    await work.begin(source, self._limits, deadline)
                responses = [await work.finish(deadline) for work in works]
            finally:
                for work in works:
                    work.leave()
            response = responses[0] if isinstance(found, ServedModel) else _mean(responses, found)
            response.model.CopyFrom(self.models.info(found))
        response.kind = kind
        response.image_sha256 = source.sha256
        response.timing.total_seconds = time.monotonic() - began
        return response

    def _members(self, found: ServedModel | Ensemble) -> list[ServedModel]:
        return [found] if isinstance(found, ServedModel) else [self.models.served[name] for name in found.weights]


class _Work:
    """One model's part of a request."""

    def __init__(self, embedder: Embedder, model: ServedModel, request: pb.ScoreRequest, kind: pb.ScoreKind) -> None:
        self._embedder = embedder
        self._model = model
        self._request = request
        self._kind = kind
        self._scale = model.scale
        self._image: Wait | None = None
        self._texts: Wait | None = None
        self._plan = Plan()
        self._began = time.monotonic()

    async def begin(self, source: ImageSource, limits: ScorerLimits, deadline: float | None) -> None:
        """Start everything; nothing is waited for but a long tokenising."""
        model, request = self._model, self._request
        steps = plan_request(request, model.tokenizer, limits, self._embedder.unknown_texts(model))
        phrases = (one for some in request.phrases for one in some.phrases)
        if cost((*request.texts, *phrases)) <= INLINE_COST:
            self._plan = finished(steps)  # bad texts first: they cost nothing
            self._image = self._embedder.ask_image(model, source)
        else:
            self._image = self._embedder.ask_image(model, source)
            self._plan = await self._embedder.planned(steps, deadline)
        self._texts = self._embedder.ask_texts(model, self._plan)

    async def finish(self, deadline: float | None) -> pb.ScoreResponse:
        """Wait for the embeddings, and make scores of them."""
        image, texts = self._image, self._texts
        assert image is not None
        assert texts is not None
        for wait in (image, texts):
            check_time(deadline)
            await wait.done(left(deadline))
        response = self._response(cosines(image.rows[0], texts.rows), image.rows[0], texts)
        self._time(response.timing, image, texts)
        return response

    def leave(self) -> None:
        """Nothing is waited for any more."""
        if self._image is not None:
            self._model.image.leave(self._image)
        if self._texts is not None:
            self._model.text.leave(self._texts)

    def _response(self, rows: Floats, image: Floats, texts: Wait) -> pb.ScoreResponse:
        plan, scale, name = self._plan, self._scale, self._model.name
        group_sizes = np.array(plan.group_sizes, np.int32)
        text_sizes = np.array(plan.text_sizes, np.int32)

        def column(kind: pb.ScoreKind) -> tuple[Floats, Floats]:
            groups = group_means(scale.apply(kind, rows, image), group_sizes)
            return groups, aggregate(groups, text_sizes, self._request.aggregation)

        columns = {kind: column(kind) for kind in _COLUMNS}
        groups, values = columns[self._kind] if self._kind in columns else column(self._kind)
        check_finite(name, values, *(found for _, found in columns.values()))
        _observe(name, columns[pb.SCORE_KIND_CLIP_SCORE][1])
        response = pb.ScoreResponse(
            scores=[
                pb.TextScore(cosine=c, clip_score=s, logit=logit, token_count=tokens, parts=parts, value=value)
                for c, s, logit, tokens, parts, value in zip(
                    *(columns[kind][1].tolist() for kind in _COLUMNS),
                    plan.counts(texts.notes),
                    plan.text_sizes,
                    values.tolist(),
                    strict=True,
                )
            ]
        )
        if not plan.plain or self._request.unit in (pb.TEXT_UNIT_SENTENCES, pb.TEXT_UNIT_PHRASES):
            self._add_parts(response, groups, columns[pb.SCORE_KIND_COSINE][0], texts)
        return response

    def _add_parts(self, response: pb.ScoreResponse, values: Floats, cosine: Floats, texts: Wait) -> None:
        plan = self._plan
        asked = self._request.unit in (pb.TEXT_UNIT_SENTENCES, pb.TEXT_UNIT_PHRASES)
        group = row = 0
        for score, size in zip(response.scores, plan.text_sizes, strict=True):
            for _ in range(size):
                pieces = plan.group_sizes[group]
                score.sentence_split |= plan.split[group]
                if asked or size > 1 or pieces > 1:
                    score.part_scores.add(
                        text=plan.groups[group],
                        value=values[group],
                        cosine=cosine[group],
                        token_count=int(texts.notes[row : row + pieces].sum()) - 2 * (pieces - 1),
                        pieces=pieces,
                        sentence_split=plan.split[group],
                    )
                group += 1
                row += pieces

    def _time(self, timing: pb.Timing, image: Wait, texts: Wait) -> None:
        timing.texts_cached = texts.known
        timing.image_cached = bool(image.known)
        if image.ready_at:
            timing.preprocess_seconds = max(0.0, image.ready_at - self._began)
            timing.image_seconds = max(0.0, image.done_at - image.ready_at)
            metrics.STAGE_SECONDS.labels("decode").observe(timing.preprocess_seconds)
        metrics.STAGE_SECONDS.labels("image").observe(timing.image_seconds)
        if texts.done_at:
            timing.text_seconds = max(0.0, texts.done_at - self._began)
        metrics.STAGE_SECONDS.labels("text").observe(timing.text_seconds)


def _kind(asked: pb.ScoreKind, found: ServedModel | Ensemble) -> pb.ScoreKind:
    if asked != pb.SCORE_KIND_UNSPECIFIED:
        return asked
    return found.kind if isinstance(found, Ensemble) else found.info.default_kind


def _observe(model: str, clip_score: Floats) -> None:
    histogram = metrics.SCORE.labels(model)
    for value in clip_score.tolist():
        histogram.observe(value)


def _mean(responses: list[pb.ScoreResponse], ensemble: Ensemble) -> pb.ScoreResponse:
    """The weighted mean of the members' responses; the parts too, where all members had the same ones."""
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
