"""What every Sightline service stands on, and what their clients share.

The names here are light (gRPC and protobuf only). A client also takes `sightline_chassis.channel`; a service takes the
rest from its module: `sightline_chassis.settings`, `.service`, `.metrics`, `.logs`.
"""

from sightline_chassis.errors import (
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

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "DataCorrupted",
    "DeadlineExceeded",
    "InternalError",
    "InvalidInput",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PreconditionFailed",
    "SightlineError",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
]
