"""Kinds of score of a model that takes picture and text together: it gives a number, no embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.errors import InvalidInput, PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.formulas import KINDS, Calibrated, Floats, not_calibrated


@dataclass(frozen=True)
class JointScale(Calibrated):
    """How a model's numbers become each kind of score."""

    model: str
    kind: str
    """The model's kind: imagereward or vqa."""
    probability: bool
    """Whether its numbers are probabilities."""

    @property
    def kinds(self) -> list[pb.ScoreKind]:
        """The kinds that a request may ask for."""
        kinds = [pb.SCORE_KIND_REWARD]
        if self.probability:
            kinds.append(pb.SCORE_KIND_PROBABILITY)
        if self.calibration is not None:
            kinds.append(pb.SCORE_KIND_PERCENTILE)
        return kinds

    def check(self, kind: pb.ScoreKind) -> None:
        """Refuse a kind that the model does not support, before any work. Raises InvalidInput, PreconditionFailed."""
        if kind not in KINDS.values():
            raise InvalidInput(
                f"kind {kind} is not a score kind: use one of {', '.join(KINDS)}", reason="SCORE_KIND_UNKNOWN"
            )
        if kind == pb.SCORE_KIND_PERCENTILE and self.calibration is None:
            raise not_calibrated(self.model, self.why_uncalibrated)
        if kind not in self.kinds:
            names = {number: name for name, number in KINDS.items()}
            raise PreconditionFailed(
                f"model {self.model!r} is of kind {self.kind}: it takes picture and text together and gives no "
                f"{names[kind]}; ask for {' or '.join(names[one] for one in self.kinds)}",
                reason="NO_EMBEDDINGS",
                metadata={"model": self.model},
            )

    def apply(self, kind: pb.ScoreKind, numbers: Floats) -> Floats:
        """Scores [N] of a checked kind, from the model's numbers [N]."""
        if kind == pb.SCORE_KIND_PERCENTILE:
            assert self.calibration is not None
            return self.calibration.percentiles(numbers)
        return numbers
