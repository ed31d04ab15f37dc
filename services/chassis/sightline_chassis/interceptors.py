"""What happens around every RPC: request id, metrics, errors, admission, in this order from outside to inside.

Each is an async context manager over a `Call`; `Interceptor` puts all of them around handlers of any kind. A handler is
`async def` returning the response, or an async generator of responses; it takes a request or an async iterator of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from sightline_chassis import errors, logs, metrics
from sightline_chassis.admission import Admission
from sightline_chassis.errors import InternalError, InvalidInput, SightlineError, Unsupported

LOG = logging.getLogger("sightline_chassis.rpc")
REQUEST_ID = "x-request-id"
EXEMPT = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")

_SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
}


@dataclass
class Call:
    """One RPC in flight."""

    service: str
    method: str
    kind: str
    context: Any
    request_id: str
    labels: tuple[str, str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = (self.kind, self.service, self.method)

    @property
    def name(self) -> str:
        """`package.Service/Method`."""
        return f"{self.service}/{self.method}"


class Interceptor(grpc.aio.ServerInterceptor):
    """Puts the layers around every handler of the server.

    Args:
        admission: who may run; None lets everything in.
        exempt: services ("package.Service") and methods ("package.Service/Method") that need no admission.
    """

    def __init__(self, admission: Admission | None = None, exempt: Iterable[str] = ()) -> None:
        self._admission = admission
        self._exempt = {*EXEMPT, *exempt}
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.running = 0
        """Calls in flight, those that wait for their turn included; health and reflection are not counted."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of the method with the layers around it."""
        path = handler_call_details.method
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # gRPC answers UNIMPLEMENTED
            self._wrapped[path] = self._wrap(handler, path)
        return self._wrapped[path]

    def _wrap(self, handler: Any, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        _, service, method = path.split("/")
        kind = metrics.go_type(handler.request_streaming, handler.response_streaming)
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def unary(request: Any, context: Any) -> Any:
            call = Call(service, method, kind, context, _request_id(context))
            async with self._around(call):
                response = behaviour(_incoming(handler, call, request), context)
                if inspect.isawaitable(response):
                    response = await response
                await _announce(call)
                metrics.SENT.labels(*call.labels).inc()
                return response

        # Not a generator: one that is cancelled while suspended ends late and elsewhere; a coroutine ends here and now.
        async def stream(request: Any, context: Any) -> None:
            call = Call(service, method, kind, context, _request_id(context))
            async with self._around(call):
                responses = behaviour(_incoming(handler, call, request), context)
                if inspect.isawaitable(responses):  # a handler that writes by `context.write`
                    await responses
                    return
                await _announce(call)
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await context.write(response)
                        metrics.SENT.labels(*call.labels).inc()

        make: dict[str, Any] = {
            "unary": grpc.unary_unary_rpc_method_handler,
            "server_stream": grpc.unary_stream_rpc_method_handler,
            "client_stream": grpc.stream_unary_rpc_method_handler,
            "bidi_stream": grpc.stream_stream_rpc_method_handler,
        }
        # A single request is parsed inside the layers, so that one that cannot be parsed is answered and counted.
        parse = handler.request_deserializer if handler.request_streaming else None
        wrapped: grpc.RpcMethodHandler[Any, Any] = make[kind](
            stream if handler.response_streaming else unary, parse, handler.response_serializer
        )
        return wrapped

    @contextlib.asynccontextmanager
    async def _around(self, call: Call) -> AsyncIterator[None]:
        logs.request_id.set(call.request_id)  # the task is the call's own: nothing to reset
        call.context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        exempt = call.service in self._exempt or call.name in self._exempt
        counted = call.service not in EXEMPT
        self.running += counted
        try:
            async with _measured(call), _mapped(call):
                if exempt or self._admission is None:
                    yield
                else:
                    async with self._admission.turn():
                        yield
        finally:
            self.running -= counted


def _request_id(context: Any) -> str:
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID, "")
    return given if re.fullmatch(r"[\w.:/+=-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


async def _announce(call: Call) -> None:
    # Only now: headers sent before an error would keep the client's gRPC from trying again.
    with contextlib.suppress(grpc.aio.UsageError):  # the handler sent its own
        await call.context.send_initial_metadata(((REQUEST_ID, call.request_id),))


def _incoming(handler: Any, call: Call, request: Any) -> Any:
    received = metrics.RECEIVED.labels(*call.labels)

    async def counted() -> AsyncIterator[Any]:
        async for message in request:
            received.inc()
            yield message

    if handler.request_streaming:
        return counted()
    received.inc()
    return handler.request_deserializer(request) if handler.request_deserializer else request


@contextlib.asynccontextmanager
async def _measured(call: Call) -> AsyncIterator[None]:
    start = time.monotonic()
    budget = call.context.time_remaining()
    metrics.STARTED.labels(*call.labels).inc()
    code = grpc.StatusCode.UNKNOWN
    try:
        yield
        code = call.context.code() or grpc.StatusCode.OK
    except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter: a write after the client went away
        code = _why_cancelled(call, budget)
        raise
    except BaseException:
        code = call.context.code() or grpc.StatusCode.UNKNOWN
        raise
    finally:
        seconds = time.monotonic() - start
        metrics.HANDLED.labels(*call.labels, metrics.go_code(code)).inc()
        metrics.HANDLING.labels(*call.labels).observe(seconds)
        level = logging.DEBUG if code is grpc.StatusCode.OK else logging.INFO
        LOG.log(
            logging.WARNING if code in _SERVER_FAULTS else level,
            "%s %s",
            call.name,
            metrics.go_code(code),
            extra={"code": metrics.go_code(code), "seconds": round(seconds, 6), "details": call.context.details()},
        )


def _why_cancelled(call: Call, budget: float | None) -> grpc.StatusCode:
    # gRPC rounds a deadline up on the wire by at most 1 %, and the client may be a little ahead of us.
    if budget is not None and call.context.time_remaining() <= max(0.05, 0.011 * budget):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


@contextlib.asynccontextmanager
async def _mapped(call: Call) -> AsyncIterator[None]:
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the client went away, or the server stops
        # Something the handler awaited was cancelled. gRPC would take it for the former and never answer.
        await _fail(call, error)
    except SightlineError as error:
        await _abort(call, error)
    except DecodeError:
        await _abort(call, InvalidInput("the request is no valid message of its type", reason="MALFORMED_REQUEST"))
    except grpc.aio.UsageError as error:
        await _fail(call, error)
    except grpc.aio.BaseError:
        raise  # aborted by the handler, or the connection is gone
    except Exception as error:
        if isinstance(error, NotImplementedError) and call.context.code() is grpc.StatusCode.UNIMPLEMENTED:
            await _abort(call, Unsupported(f"{call.name} is not implemented yet"))  # a stub's default method
        await _fail(call, error)


async def _fail(call: Call, error: BaseException) -> None:
    LOG.error("%s failed", call.name, exc_info=error)
    message = f"internal error; the service's log has it under request id {call.request_id}"
    await _abort(call, InternalError(message))


async def _abort(call: Call, error: SightlineError) -> None:
    if call.context.done():
        raise error  # the handler had aborted before: its status is on the way
    error.metadata.setdefault("request_id", call.request_id)
    status = errors.to_status(error)
    trailing: list[tuple[str, str | bytes]] = [
        (REQUEST_ID, call.request_id),
        (errors.DETAILS_KEY, status.SerializeToString()),
    ]
    if error.retry_after is not None:
        trailing.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))))
    await call.context.abort(error.code, status.message, tuple(trailing))
