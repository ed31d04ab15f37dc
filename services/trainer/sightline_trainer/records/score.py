"""Score: a candidate's reward, and its terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Score:
    """The reward of one text, to 0.01, or why there is none.

    `terms` has the value of each term of the reward, before weights; `cosine` and `logit` are the scorer's.
    `sentences` are the CLIPScores of the text's sentences if it was scored by sentence.
    """

    reward: float | None
    cosine: float | None = None
    logit: float | None = None
    error: str = ""
    terms: dict[str, float] = field(default_factory=dict)
    sentences: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """As a row of `scores/*.parquet`."""
        return {**vars(self), "terms": sorted(self.terms.items())}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Score:
        """From a row."""
        return cls(**{**row, "terms": dict(row["terms"] or ())})


UNSCORED = Score(None)
"""The score of a candidate that is not scored yet."""

SCORE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("reward", pa.float64()),
        ("cosine", pa.float64()),
        ("logit", pa.float64()),
        ("error", pa.string()),
        ("terms", pa.map_(pa.string(), pa.float64())),
        ("sentences", pa.list_(pa.float64())),
    ]
)
"""Columns of `scores/*.parquet`."""
