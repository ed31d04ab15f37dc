"""The scorer: how well does each text fit its image? This name gives its clients, which need nothing heavy.

    from sightline_scorer import ScorerClient

The service is `sightline serve scorer`; see services/scorer/README.md.
"""

from sightline_scorer.client import (
    NEVER,
    Aggregation,
    AsyncScorerClient,
    Embedding,
    EmbedResult,
    EnsembleMember,
    Image,
    ImageDigest,
    ImageUri,
    Kind,
    Limits,
    LongText,
    ModelInfo,
    Models,
    Outcome,
    Pair,
    PartScore,
    Progress,
    Retry,
    ScoreOptions,
    ScorerClient,
    ScoreResult,
    Timing,
    Unit,
)

__all__ = [
    "NEVER",
    "Aggregation",
    "AsyncScorerClient",
    "EmbedResult",
    "Embedding",
    "EnsembleMember",
    "Image",
    "ImageDigest",
    "ImageUri",
    "Kind",
    "Limits",
    "LongText",
    "ModelInfo",
    "Models",
    "Outcome",
    "Pair",
    "PartScore",
    "Progress",
    "Retry",
    "ScoreOptions",
    "ScoreResult",
    "ScorerClient",
    "Timing",
    "Unit",
]
