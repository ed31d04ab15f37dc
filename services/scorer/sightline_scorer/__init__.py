"""The scorer: how well does each text fit its image? This name gives its clients, which need nothing heavy.

    from sightline_scorer import ScorerClient

The service is `sightline serve scorer`; see services/scorer/README.md.
"""

from sightline_scorer.client import (
    AsyncScorerClient,
    Image,
    Limits,
    LongText,
    ModelInfo,
    Models,
    Outcome,
    ScorerClient,
    ScoreResult,
    Timing,
)

__all__ = [
    "AsyncScorerClient",
    "Image",
    "Limits",
    "LongText",
    "ModelInfo",
    "Models",
    "Outcome",
    "ScoreResult",
    "ScorerClient",
    "Timing",
]
