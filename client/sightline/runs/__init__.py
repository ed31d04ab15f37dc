"""The trainer's clients: start, watch and stop runs. Light: gRPC and protobuf.

    from sightline.runs import RunClient

The service is `sightline serve trainer`; see services/trainer/README.md.
"""

from sightline.runs.aio import AsyncRunClient
from sightline.runs.client import RunClient
from sightline.runs.types import (
    MetricChange,
    PictureChange,
    RecipeDifference,
    Run,
    RunComparison,
    RunEvent,
    RunPicture,
    RunPolicy,
    RunState,
    RunText,
    TextSpan,
)

__all__ = [
    "AsyncRunClient",
    "MetricChange",
    "PictureChange",
    "RecipeDifference",
    "Run",
    "RunClient",
    "RunComparison",
    "RunEvent",
    "RunPicture",
    "RunPolicy",
    "RunState",
    "RunText",
    "TextSpan",
]
