"""The errors that Sightline services return and clients raise: one tree for both sides.

    SightlineError
    ├── InvalidInput        INVALID_ARGUMENT     the request is wrong; sending it again will not help
    ├── NotFound            NOT_FOUND
    ├── AlreadyExists       ALREADY_EXISTS
    ├── PreconditionFailed  FAILED_PRECONDITION  right request, wrong state of the service
    ├── Overloaded          RESOURCE_EXHAUSTED   try again after `retry_after` seconds
    ├── Unavailable         UNAVAILABLE          a backend or the service is unavailable; may be retried
    ├── DeadlineExceeded    DEADLINE_EXCEEDED
    ├── Cancelled           CANCELLED
    ├── Unsupported         UNIMPLEMENTED
    ├── PermissionDenied    PERMISSION_DENIED
    ├── Unauthenticated     UNAUTHENTICATED
    ├── DataCorrupted       DATA_LOSS
    └── InternalError       INTERNAL             a bug of the service; the message names the request id

A handler raises one of these; the chassis turns it into a status with `google.rpc.ErrorInfo` (domain "sightline")
and, if `retry_after` is set, `google.rpc.RetryInfo`. A client turns the status back with `typed_errors()`.
Codes without a class (ABORTED, OUT_OF_RANGE, UNKNOWN) become a plain `SightlineError`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "sightline"
DETAILS_KEY = "grpc-status-details-bin"

# Peers refuse trailing metadata over about 8 KiB; then the client sees RESOURCE_EXHAUSTED instead of our error.
# The message is sent twice (percent-encoded, and as base64 in the details), so it and the facts are kept short.
MAX_MESSAGE_BYTES = 1000
MAX_METADATA_BYTES = 1500


class SightlineError(Exception):
    """Base of all errors.

    Args:
        message: what is wrong and what to do about it. Clipped to 1000 bytes on the wire.
        reason: UPPER_SNAKE, stable, for programs; the class has a default.
        metadata: more facts, as in `google.rpc.ErrorInfo`; those over 1500 bytes in total are not sent.
        retry_after: seconds to wait before a retry; None if a retry does not help.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after


class InvalidInput(SightlineError):
    """The request is wrong."""

    code, reason = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"


class NotFound(SightlineError):
    """The named thing does not exist."""

    code, reason = grpc.StatusCode.NOT_FOUND, "NOT_FOUND"


class AlreadyExists(SightlineError):
    """The thing to create already exists."""

    code, reason = grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"


class PreconditionFailed(SightlineError):
    """The service is not in a state in which it can carry out the request."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "PRECONDITION_FAILED"


class Overloaded(SightlineError):
    """The service has more work than it accepts; try again after `retry_after` seconds."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"


class Unavailable(SightlineError):
    """The service or its backend is unavailable for now."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"


class DeadlineExceeded(SightlineError):
    """The caller's deadline passed."""

    code, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class Cancelled(SightlineError):
    """The call was cancelled."""

    code, reason = grpc.StatusCode.CANCELLED, "CANCELLED"


class Unsupported(SightlineError):
    """The service does not support this (yet)."""

    code, reason = grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"


class PermissionDenied(SightlineError):
    """The caller is known but not allowed to do this."""

    code, reason = grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"


class Unauthenticated(SightlineError):
    """The caller is unknown."""

    code, reason = grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"


class DataCorrupted(SightlineError):
    """Bytes are not what they should be (a digest does not match)."""

    code, reason = grpc.StatusCode.DATA_LOSS, "DATA_CORRUPTED"


class InternalError(SightlineError):
    """A bug of the service; its log has the traceback under the request id."""

    code, reason = grpc.StatusCode.INTERNAL, "INTERNAL"


_CLASSES: dict[grpc.StatusCode, type[SightlineError]] = {cls.code: cls for cls in SightlineError.__subclasses__()}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_code(
    code: int,
    message: str,
    *,
    reason: str | None = None,
    metadata: Mapping[str, str] | None = None,
    retry_after: float | None = None,
) -> SightlineError:
    """The typed error for a gRPC status number, such as that of an item in a stream."""
    known = status_code(code)
    cls = _CLASSES.get(known, SightlineError)
    error = cls(message, reason=reason, metadata=metadata, retry_after=retry_after)
    if cls is SightlineError:
        error.code = known
        error.reason = reason or known.name
    return error


def status_code(number: int) -> grpc.StatusCode:
    """The status for a number; UNKNOWN if gRPC does not define it."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def to_status(error: SightlineError, **facts: str) -> status_pb2.Status:
    """The error as `google.rpc.Status` with ErrorInfo and, if `retry_after` is set, RetryInfo.

    Args:
        error: the error.
        facts: metadata added to the error's own.
    """
    status = status_pb2.Status(code=error.code.value[0], message=_clip(error.message, MAX_MESSAGE_BYTES))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    left = MAX_METADATA_BYTES
    for key, value in {**facts, **error.metadata}.items():
        left -= len(key.encode("utf-8", "replace")) + len(str(value).encode("utf-8", "replace"))
        if left < 0:
            break
        info.metadata[_clip(key, MAX_METADATA_BYTES)] = _clip(str(value), MAX_METADATA_BYTES)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(max(error.retry_after, 0.0) * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> SightlineError:
    """The typed error of a `google.rpc.Status`; the inverse of `to_status`."""
    info, retry, retry_after = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in status.details:
        if detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        else:
            detail.Unpack(info)  # does not change `info` if the detail has another type
    return from_code(
        status.code,
        status.message,
        reason=info.reason or None,
        metadata=dict(info.metadata),
        retry_after=retry_after,
    )


def from_rpc_error(error: grpc.RpcError) -> SightlineError:
    """The typed error for an error of a stub, sync or aio, with the details that the server sent (if any)."""
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return SightlineError(str(error))
    code: grpc.StatusCode = error.code()
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == DETAILS_KEY:
            with contextlib.suppress(Exception):  # a proxy may have put anything there; the code is still valid
                status = status_pb2.Status.FromString(value)
                if status.code == code.value[0]:
                    return from_status(status)
    message = error.details() or code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:  # gRPC's own; a retry is useless
        return InvalidInput(message, reason="MESSAGE_TOO_LARGE")
    return from_code(code.value[0], message)


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Turn `grpc.RpcError` raised inside the block into a `SightlineError`; for sync and aio stubs alike."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error, without the list, advice or traceback after it; at most `most` characters."""
    return (str(error).strip() or "no message").splitlines()[0][:most]


def _clip(text: str, limit: int) -> str:
    raw = text.encode("utf-8", "replace")  # a lone surrogate cannot be sent
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode("utf-8", "ignore") + "…"
