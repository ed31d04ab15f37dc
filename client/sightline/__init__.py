"""Sightline's clients: light, typed, for the scorer, the sampler and the trainer.

    from sightline import ScorerClient

    with ScorerClient("127.0.0.1:50051") as scorer:
        print(scorer.score("photo.jpg", ["a dog on a beach", "a cat on a sofa"]).clip_score)

Needs gRPC, protobuf and NumPy. The types of each service's answers are in `sightline.scorer`, `sightline.sampler` and
`sightline.runs`; rewards for TRL, verl and OpenRLHF in `sightline.integrations`. Each client is imported when it is
first used.
"""

import importlib
from typing import TYPE_CHECKING

from sightline.errors import (
    AlreadyExists,
    Cancelled,
    DataCorrupted,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    SightlineError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from sightline.credentials import Tls, Token
    from sightline.patience import ONCE, Patience
    from sightline.runs import AsyncRunClient, RunClient
    from sightline.sampler import AsyncSamplerClient, SamplerClient
    from sightline.scorer import AsyncScorerClient, ScorerClient

__all__ = [
    "ONCE",
    "AlreadyExists",
    "AsyncRunClient",
    "AsyncSamplerClient",
    "AsyncScorerClient",
    "Cancelled",
    "DataCorrupted",
    "DeadlineExceeded",
    "InternalError",
    "InvalidInput",
    "NotFound",
    "Overloaded",
    "Patience",
    "PermissionDenied",
    "PreconditionFailed",
    "RunClient",
    "SamplerClient",
    "ScorerClient",
    "SightlineError",
    "Tls",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
]

_HOMES = {
    "ONCE": "patience",
    "AsyncRunClient": "runs",
    "AsyncSamplerClient": "sampler",
    "AsyncScorerClient": "scorer",
    "Patience": "patience",
    "RunClient": "runs",
    "SamplerClient": "sampler",
    "ScorerClient": "scorer",
    "Tls": "credentials",
    "Token": "credentials",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"sightline.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
