"""One model's part of a score request: its questions, and the response from its numbers."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer import metrics
from sightline_scorer.embedder import Embedder, ImageSource, check_time, left
from sightline_scorer.formulas import Floats, aggregate, check_finite, cosines, group_means
from sightline_scorer.joint import JointModel
from sightline_scorer.models import ServedModel
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.texts import INLINE_COST, Plan, Steps, cost, finished, plan_request
from sightline_scorer.tower import Wait

_COLUMNS = (pb.SCORE_KIND_COSINE, pb.SCORE_KIND_CLIP_SCORE, pb.SCORE_KIND_LOGIT)
Columns = dict[pb.ScoreKind, tuple[Floats, Floats]]
"""For each kind of score: those of the parts [G] and of the texts [K]."""


class ModelWork(Protocol):
    """Started for all models of a request, then finished one after the other."""

    async def begin(self, source: ImageSource, limits: ScorerLimits, deadline: float | None) -> None:
        """Start everything; waits only for a long tokenising. Raises a SightlineError."""
        ...

    async def finish(self, deadline: float | None) -> pb.ScoreResponse:
        """Wait, and make scores. Raises a SightlineError."""
        ...

    def leave(self) -> None:
        """Stop waiting."""
        ...


class ClipWork:
    """The part of a model with embeddings."""

    def __init__(self, embedder: Embedder, model: ServedModel, request: pb.ScoreRequest, kind: pb.ScoreKind) -> None:
        self._embedder = embedder
        self._model = model
        self._request = request
        self._kind = kind
        self._image: Wait | None = None
        self._texts: Wait | None = None
        self._plan = Plan()
        self._began = time.monotonic()

    async def begin(self, source: ImageSource, limits: ScorerLimits, deadline: float | None) -> None:
        model, request = self._model, self._request
        steps = plan_request(request, model.tokenizer, limits, self._embedder.unknown_texts(model))
        if _is_cheap(request):
            self._plan = finished(steps)  # bad texts first: they cost nothing
            self._image = self._embedder.ask_image(model, source)
        else:
            self._image = self._embedder.ask_image(model, source)
            self._plan = await self._embedder.planned(steps, deadline)
        self._texts = self._embedder.ask_texts(model, self._plan)

    async def finish(self, deadline: float | None) -> pb.ScoreResponse:
        image, texts, name = self._image, self._texts, self._model.name
        assert image is not None
        assert texts is not None
        for wait in (image, texts):
            check_time(deadline)
            await wait.done(left(deadline))
        columns = self._columns(cosines(image.rows[0], texts.rows), image.rows[0])
        check_finite(name, columns[self._kind][1], *(found for _, found in columns.values()))
        _observe(name, columns[pb.SCORE_KIND_CLIP_SCORE][1])
        response = _response(self._plan, self._request, self._kind, columns, texts)
        self._time(response.timing, image, texts)
        return response

    def leave(self) -> None:
        if self._image is not None:
            self._model.image.leave(self._image)
        if self._texts is not None:
            self._model.text.leave(self._texts)

    def _columns(self, rows: Floats, image: Floats) -> Columns:
        scale = self._model.scale
        return {
            kind: _column(self._plan, scale.apply(kind, rows, image), self._request.aggregation)
            for kind in {*_COLUMNS, self._kind}
        }

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


class JointWork:
    """The part of a model that takes picture and text together: each pair is one call; known pairs are not computed
    again."""

    def __init__(self, embedder: Embedder, model: JointModel, request: pb.ScoreRequest, kind: pb.ScoreKind) -> None:
        self._embedder = embedder
        self._model = model
        self._request = request
        self._kind = kind
        self._pairs: Wait | None = None
        self._plan = Plan()
        self._began = time.monotonic()

    async def begin(self, source: ImageSource, limits: ScorerLimits, deadline: float | None) -> None:
        model = self._model
        steps: Steps = plan_request(self._request, model.texts, limits, self._embedder.unknown_pairs(model, source))
        cheap = _is_cheap(self._request)
        self._plan = finished(steps) if cheap else await self._embedder.planned(steps, deadline)
        self._pairs = self._embedder.ask_pairs(model, source, self._plan)

    async def finish(self, deadline: float | None) -> pb.ScoreResponse:
        pairs, plan = self._pairs, self._plan
        assert pairs is not None
        check_time(deadline)
        await pairs.done(left(deadline))
        scores = self._model.scale.apply(self._kind, pairs.rows[:, 0])
        column = _column(plan, scores, self._request.aggregation)
        check_finite(self._model.name, column[1])
        response = _response(plan, self._request, self._kind, {self._kind: column}, pairs)
        timing = response.timing
        timing.texts_cached = pairs.known
        timing.image_cached = pairs.known == len(plan.rows)
        if pairs.ready_at:
            timing.preprocess_seconds = max(0.0, pairs.ready_at - self._began)
            timing.text_seconds = max(0.0, pairs.done_at - pairs.ready_at)
            metrics.STAGE_SECONDS.labels("decode").observe(timing.preprocess_seconds)
        metrics.STAGE_SECONDS.labels("text").observe(timing.text_seconds)
        return response

    def leave(self) -> None:
        if self._pairs is not None:
            self._model.tower.leave(self._pairs)


def _is_cheap(request: pb.ScoreRequest) -> bool:
    """Whether its texts are tokenised faster than a thread could be started."""
    return cost((*request.texts, *(one for some in request.phrases for one in some.phrases))) <= INLINE_COST


def _column(plan: Plan, rows: Floats, how: pb.Aggregation) -> tuple[Floats, Floats]:
    groups = group_means(rows, np.array(plan.group_sizes, np.int32))
    return groups, aggregate(groups, np.array(plan.text_sizes, np.int32), how)


def _response(
    plan: Plan, request: pb.ScoreRequest, kind: pb.ScoreKind, columns: Columns, texts: Wait
) -> pb.ScoreResponse:
    """Scores without the model and the time; `texts` has the rows' tokens. A kind without a column remains 0."""
    values = columns[kind][1].tolist()
    none = [0.0] * len(values)
    response = pb.ScoreResponse(
        scores=[
            pb.TextScore(cosine=c, clip_score=s, logit=logit, token_count=tokens, parts=parts, value=value)
            for c, s, logit, tokens, parts, value in zip(
                *(columns[each][1].tolist() if each in columns else none for each in _COLUMNS),
                plan.counts(texts.notes),
                plan.text_sizes,
                values,
                strict=True,
            )
        ]
    )
    asked = request.unit in (pb.TEXT_UNIT_SENTENCES, pb.TEXT_UNIT_PHRASES)
    if not plan.plain or asked:
        groups = columns[kind][0]
        cosine = columns[pb.SCORE_KIND_COSINE][0] if pb.SCORE_KIND_COSINE in columns else np.zeros_like(groups)
        _add_parts(response, plan, groups, cosine, texts, asked=asked)
    return response


def _add_parts(
    response: pb.ScoreResponse, plan: Plan, values: Floats, cosine: Floats, texts: Wait, *, asked: bool
) -> None:
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


def _observe(model: str, clip_score: Floats) -> None:
    histogram = metrics.SCORE.labels(model)
    for value in clip_score.tolist():
        histogram.observe(value)
