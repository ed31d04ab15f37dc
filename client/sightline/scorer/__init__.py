"""The scorer's clients: how well does each text fit its image?

    from sightline.scorer import ScorerClient

Light: gRPC, protobuf, NumPy. The service is `sightline serve scorer`; see services/scorer/README.md.
"""

from sightline.many import Progress
from sightline.scorer.aio import AsyncScorerClient
from sightline.scorer.client import ScorerClient
from sightline.scorer.many import Outcome, Pair
from sightline.scorer.types import (
    Embedding,
    EmbedResult,
    EnsembleMember,
    Limits,
    ModelInfo,
    Models,
    PartScore,
    ScoreResult,
    Timing,
)
from sightline.scorer.wire import Aggregation, Image, ImageDigest, ImageUri, Kind, LongText, ScoreOptions, Unit

__all__ = [
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
    "ScoreOptions",
    "ScoreResult",
    "ScorerClient",
    "Timing",
    "Unit",
]
