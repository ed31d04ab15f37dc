"""One RPC in flight: its facts, its metrics, and how its failures become statuses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from sightline import errors
from sightline.errors import (
    InternalError,
    InvalidInput,
    Overloaded,
    PreconditionFailed,
    SightlineError,
    Unsupported,
)

from sightline_chassis import metrics, traces
from sightline_chassis.full_disk import disk_full

logger = logging.getLogger(__name__)
REQUEST_ID = "x-request-id"

_LEVELS = dict.fromkeys(grpc.StatusCode, logging.INFO) | {
    grpc.StatusCode.OK: logging.DEBUG,
    grpc.StatusCode.RESOURCE_EXHAUSTED: logging.DEBUG,  # an overload must not flood the log
    grpc.StatusCode.UNAUTHENTICATED: logging.DEBUG,  # strangers must not flood it either; a metric counts them
    grpc.StatusCode.UNKNOWN: logging.WARNING,
    grpc.StatusCode.INTERNAL: logging.WARNING,
    grpc.StatusCode.DATA_LOSS: logging.WARNING,
    grpc.StatusCode.UNAVAILABLE: logging.WARNING,
}


class Call:
    """One RPC in flight.

    Args:
        service: full name of the gRPC service.
        method: name of the method.
        kind: "unary", "client_stream", "server_stream" or "bidi_stream".
        context: gRPC's context of the call.
        team: the caller's team; "" without authentication.
    """

    def __init__(self, service: str, method: str, kind: str, context: Any, team: str = "") -> None:
        self.service = service
        self.team = team
        self.name = f"{service}/{method}"
        self.labels = (kind, service, method)
        self.context = context
        given = dict(context.invocation_metadata() or ()).get(REQUEST_ID, "")
        self.request_id: str = given if re.fullmatch(r"[\w.:/+=-]{1,128}", given, re.ASCII) else uuid.uuid4().hex
        """The caller's request id, or one made here."""
        self._announced = False

    @property
    def code(self) -> grpc.StatusCode | None:
        """The status code set on the call so far, by `abort` or by the handler."""
        code = self.context.code()
        return errors.status_code(code) if isinstance(code, int) else code

    async def announce(self) -> None:
        """Send the headers of a stream once, with the first response: after headers the client's gRPC never retries.

        (A single response does not need them: its trailers carry the id.)
        """
        if not self._announced:
            self._announced = True
            with contextlib.suppress(grpc.aio.UsageError):  # the handler sent its own
                await self.context.send_initial_metadata(((REQUEST_ID, self.request_id),))

    async def abort(self, error: SightlineError) -> NoReturn:
        """End the call with the error."""
        if self.context.done():  # the handler has aborted: its status is being sent, and gRPC raises it again
            await self.context.send_initial_metadata(())
        status = errors.to_status(error, request_id=self.request_id)
        trailing = [(REQUEST_ID, self.request_id), (errors.DETAILS_KEY, status.SerializeToString())]
        if error.retry_after is not None:
            trailing.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))))
        await self.context.abort(error.code, status.message, tuple(trailing))
        raise AssertionError("abort returned")

    async def fail(self, cause: BaseException) -> NoReturn:
        """End the call as our own bug, or as one of the disk: the traceback goes only to the log."""
        logger.error("%s failed", self.name, exc_info=cause)
        place = f"the service's log has it under request id {self.request_id}"
        await self.abort(_of_disk(cause, place) or InternalError(f"internal error; {place}"))


@contextlib.asynccontextmanager
async def measured(call: Call) -> AsyncIterator[None]:
    """Count and time the call, and log its end."""
    start, budget = time.monotonic(), call.context.time_remaining()
    metrics.STARTED.labels(*call.labels).inc()
    with traces.serving(call.name, call.context.invocation_metadata() or (), call.request_id) as served:
        try:
            yield
            served.code = call.code or grpc.StatusCode.OK
        except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter: a write after the client went away
            served.code = _why_cancelled(call, budget)
            raise
        except BaseException:
            served.code = call.code or grpc.StatusCode.UNKNOWN
            raise
        finally:
            _ended(call, served.code, time.monotonic() - start)


def _ended(call: Call, code: grpc.StatusCode, seconds: float) -> None:
    spelled = metrics.go_code(code)
    metrics.HANDLED.labels(*call.labels, spelled).inc()
    metrics.HANDLING.labels(*call.labels).observe(seconds)
    if call.team:
        metrics.TEAM_CALLS.labels(call.team, spelled).inc()
        if code is grpc.StatusCode.OK:
            metrics.LAST_SUCCESS.set_to_current_time()
    extra = {"code": spelled, "seconds": round(seconds, 6), "details": call.context.details(), "team": call.team}
    logger.log(_LEVELS[code], "%s %s", call.name, spelled, extra=extra)


@contextlib.asynccontextmanager
async def mapped(call: Call) -> AsyncIterator[None]:
    """Answer with the handler's error: a `SightlineError` unchanged, anything else as INTERNAL."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise  # the client disconnected, or the server stops
        # Something that the handler awaited was cancelled. gRPC would think that the client left, and never answer.
        await call.fail(error)
    except SightlineError as error:
        await call.abort(error)
    except ExceptionGroup as group:  # from a handler's TaskGroup
        ours, others = group.split(SightlineError)
        if ours is None or others is not None:
            await call.fail(group)
        await call.abort(_first(ours))
    except DecodeError:
        await call.abort(InvalidInput("the request is not a valid message of its type", reason="MALFORMED_REQUEST"))
    except NotImplementedError as error:
        if call.code is grpc.StatusCode.UNIMPLEMENTED:  # the default method of a generated servicer
            await call.abort(Unsupported(f"{call.name} is not implemented yet", reason="METHOD_NOT_IMPLEMENTED"))
        await call.fail(error)
    except grpc.aio.UsageError as error:
        await call.fail(error)
    except grpc.aio.BaseError:
        raise  # the handler aborted, or the connection is lost
    except Exception as error:
        await call.fail(error)


def _of_disk(cause: BaseException, place: str) -> SightlineError | None:
    if disk_full(cause):
        return Overloaded(f"the service's disk is full: have its operator free some space; {place}", reason="DISK_FULL")
    if not isinstance(cause, OSError):
        return None
    if cause.errno == errno.EROFS or (isinstance(cause, PermissionError) and cause.filename is not None):
        return PreconditionFailed(
            f"the service cannot use its files ({cause.strerror}): tell its operator; {place}",
            reason="STORAGE_UNWRITABLE",
        )
    return None


def _first(group: ExceptionGroup[SightlineError]) -> SightlineError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def _why_cancelled(call: Call, budget: float | None) -> grpc.StatusCode:
    # gRPC rounds a deadline up by about 1 % on the wire, and the client's clock may be slightly ahead.
    if budget is not None and call.context.time_remaining() <= max(0.05, 0.011 * budget):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
