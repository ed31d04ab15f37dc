"""The formulas from embeddings to scores, and from a text's parts to its score, in vectorised NumPy.

A text has groups (its sentences, or the whole text and its phrases), and a group has rows (one, or the pieces of a
sentence over the model's window). A group's score is the mean of its rows'; a text's is the mean, minimum or sum of its
groups'.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sightline.errors import InternalError, InvalidInput, PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.aesthetic import AestheticHead
from sightline_scorer.calibration import Calibration
from sightline_scorer.metrics import NONFINITE
from sightline_scorer.triton.card import ModelCard

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]

KINDS = {
    "cosine": pb.SCORE_KIND_COSINE,
    "clip_score": pb.SCORE_KIND_CLIP_SCORE,
    "logit": pb.SCORE_KIND_LOGIT,
    "probability": pb.SCORE_KIND_PROBABILITY,
    "percentile": pb.SCORE_KIND_PERCENTILE,
    "reward": pb.SCORE_KIND_REWARD,
}
"""The kinds by their names in settings."""


def cosines(image: npt.NDArray[Any], texts: npt.NDArray[Any]) -> Floats:
    """Cosines [N] of an image [D] with texts [N, D]; all have length 1."""
    found: Floats = (texts @ image).clip(-1, 1).astype(np.float32)
    return found


def clip_scores(cosine: Floats) -> Floats:
    """CLIPScore of Hessel et al. 2021 with weight 100: 100 * max(cosine, 0)."""
    return 100 * np.maximum(cosine, 0)


def logits(cosine: Floats, scale: float, bias: float) -> Floats:
    """The model's own logit: scale * cosine + bias."""
    return (scale * cosine + bias).astype(np.float32)


def probabilities(logit: Floats) -> Floats:
    """sigmoid(logit), the pairwise probability of a model trained with the sigmoid loss (Zhai et al. 2023)."""
    return (0.5 * (1 + np.tanh(0.5 * logit.astype(np.float64)))).astype(np.float32)


REWARDING = ("pickscore", "hpsv2", "aesthetic")
"""Kinds of models whose authors publish a number as the score: PickScore's logit, HPSv2's cosine, a mark."""


def default_kind(card: ModelCard) -> pb.ScoreKind:
    """The kind of score for requests that do not name one."""
    return pb.SCORE_KIND_REWARD if card.kind in REWARDING else pb.SCORE_KIND_CLIP_SCORE


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A model that has a calibration, or a reason why not."""

    calibration: Calibration | None = None
    why_uncalibrated: str = ""

    def calibrated(self, calibration: Calibration | None, why_uncalibrated: str = "") -> Self:
        """A copy with a calibration, or with the reason why there is none."""
        return dataclasses.replace(self, calibration=calibration, why_uncalibrated=why_uncalibrated)

    @property
    def digest(self) -> str:
        """SHA-256 of the calibration's file; empty if there is none."""
        return self.calibration.digest if self.calibration is not None else ""


@dataclass(frozen=True)
class Scale(Calibrated):
    """How a model turns cosines, and the picture's embedding, into each kind of score."""

    model: str
    logit_scale: float
    logit_bias: float
    sigmoid: bool
    kind: str = "clip"
    """Of the model."""
    head: AestheticHead | None = None

    @classmethod
    def of(
        cls, card: ModelCard, calibration: Calibration | None, why_uncalibrated: str, head: AestheticHead | None = None
    ) -> Scale:
        """From a model's facts."""
        scale, bias = card.logit_scale, card.logit_bias
        facts = card.name, scale, bias, card.sigmoid, card.kind, head
        return cls(*facts, calibration=calibration, why_uncalibrated=why_uncalibrated)

    @property
    def kinds(self) -> list[pb.ScoreKind]:
        """The kinds that a request may ask for."""
        kinds = [pb.SCORE_KIND_COSINE, pb.SCORE_KIND_CLIP_SCORE, pb.SCORE_KIND_LOGIT]
        if self.sigmoid:
            kinds.append(pb.SCORE_KIND_PROBABILITY)
        if self.calibration is not None:
            kinds.append(pb.SCORE_KIND_PERCENTILE)
        if self.kind in REWARDING:
            kinds.append(pb.SCORE_KIND_REWARD)
        return kinds

    def check(self, kind: pb.ScoreKind) -> None:
        """Refuse a kind that the model does not support, before any work. Raises InvalidInput, PreconditionFailed."""
        if kind not in KINDS.values():
            known = ", ".join(KINDS)
            raise InvalidInput(f"kind {kind} is not a score kind: use one of {known}", reason="SCORE_KIND_UNKNOWN")
        if kind == pb.SCORE_KIND_PROBABILITY and not self.sigmoid:
            raise PreconditionFailed(
                f"model {self.model!r} was not trained with the sigmoid loss, so its logits are not probabilities: ask "
                "for another kind, or for a SigLIP-type model",
                reason="NO_PROBABILITY",
                metadata={"model": self.model},
            )
        if kind == pb.SCORE_KIND_REWARD and self.kind not in REWARDING:
            raise PreconditionFailed(
                f"model {self.model!r} is of kind {self.kind}, whose authors publish no number of their own: ask for "
                "another kind of score",
                reason="NO_REWARD",
                metadata={"model": self.model},
            )
        if kind == pb.SCORE_KIND_PERCENTILE and self.calibration is None:
            raise not_calibrated(self.model, self.why_uncalibrated)

    def apply(self, kind: pb.ScoreKind, cosine: Floats, image: Floats | None = None) -> Floats:
        """Scores [N] of a checked kind, from cosines [N]; an aesthetic score comes from the image's embedding [D]."""
        if kind == pb.SCORE_KIND_PERCENTILE and self.head is not None:
            assert self.calibration is not None
            return self.calibration.percentiles(self.apply(pb.SCORE_KIND_REWARD, cosine, image))
        if kind == pb.SCORE_KIND_REWARD:
            if self.head is not None:
                assert image is not None
                return np.full(len(cosine), self.head(image), np.float32)
            kind = pb.SCORE_KIND_LOGIT if self.kind == "pickscore" else pb.SCORE_KIND_COSINE
        if kind == pb.SCORE_KIND_COSINE:
            return cosine
        if kind == pb.SCORE_KIND_CLIP_SCORE:
            return clip_scores(cosine)
        if kind == pb.SCORE_KIND_PERCENTILE:
            assert self.calibration is not None
            return self.calibration.percentiles(cosine)
        logit = logits(cosine, self.logit_scale, self.logit_bias)
        return logit if kind == pb.SCORE_KIND_LOGIT else probabilities(logit)


def not_calibrated(model: str, why: str) -> PreconditionFailed:
    """The error for percentiles without a calibration."""
    return PreconditionFailed(
        f"model {model!r} is not calibrated{why}: run `sightline scorer calibrate --model {model} --scorer HOST:PORT "
        "PAIRS.jsonl` and reload the models",
        reason="NOT_CALIBRATED",
        metadata={"model": model},
    )


def group_means(rows: Floats, sizes: Counts) -> Floats:
    """Means [G] of consecutive groups of `sizes` [G] rows [N], N = sum(sizes)."""
    if len(rows) == len(sizes):
        return rows
    return (np.add.reduceat(rows, _starts(sizes)) / sizes).astype(np.float32)


def aggregate(groups: Floats, sizes: Counts, how: pb.Aggregation) -> Floats:
    """Scores [K] of texts with `sizes` [K] groups each, from the groups' scores [G]."""
    if len(groups) == len(sizes):
        return groups
    if how == pb.AGGREGATION_MIN:
        return np.minimum.reduceat(groups, _starts(sizes))
    sums = np.add.reduceat(groups, _starts(sizes))
    return (sums if how == pb.AGGREGATION_SUM else sums / sizes).astype(np.float32)


def check_finite(model: str, *columns: Floats) -> None:
    """Raise InternalError if a score is NaN or infinite: it never leaves the service as a number."""
    for column in columns:
        if not np.isfinite(column).all():
            NONFINITE.inc()
            raise InternalError(
                f"model {model!r} gave a score that is not finite, so there is no score",
                reason="NONFINITE_SCORE",
                metadata={"model": model, "text_index": str(int(np.flatnonzero(~np.isfinite(column))[0]))},
            )


def _starts(sizes: Counts) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
