"""The layers around every RPC: caller, request id, metrics, errors, admission, in this order.

A call that arrives while the service still loads is held and continues when it serves: its caller sees a slow
connection, not an unavailable service. This applies to health too, on which the clients' channels wait.

A refused call is answered by a handler that reads nothing: its payload is never decoded, and a large one not even
received.

A handler is `async def` returning the response, or an async generator of responses; it takes a request or an async
iterator of them. (gRPC's `context.read` and `context.write` work too, but their messages are not counted.)
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from sightline.errors import Overloaded, SightlineError

from sightline_chassis import logs, metrics
from sightline_chassis.calls import REQUEST_ID, Call, mapped, measured
from sightline_chassis.gate import INFRASTRUCTURE, Gate

Handler = Any  # grpc.RpcMethodHandler for any request and response


class Interceptor(grpc.aio.ServerInterceptor):
    """Puts the layers around every handler of the server.

    Args:
        gate: authentication and admission.
        most_held: maximum calls that wait for the service to start.
    """

    def __init__(self, gate: Gate, most_held: int) -> None:
        self._gate = gate
        self._most_held, self._held = most_held, 0
        self._opened = asyncio.Event()
        self._trouble: SightlineError | None = None
        self._wrapped: dict[str, tuple[Handler, str]] = {}
        self._running = 0
        self.idle = asyncio.Event()
        """Set while no call is in flight or waiting; health and reflection do not count."""
        self.idle.set()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """The method's handler with the layers around it; None (gRPC answers UNIMPLEMENTED) if there is none."""
        path = handler_call_details.method
        _, service, method = path.split("/")
        if (why := await self._hold()) is not None:
            return _refusing(why, service, method, "unary")
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[path] = (
                self._wrap(handler, path),
                metrics.go_type(handler.request_streaming, handler.response_streaming),
            )
        handler, kind = self._wrapped[path]
        try:
            # gRPC runs the handler in this task too; it refuses a call without a known caller.
            self._gate.identify(service, method, handler_call_details.invocation_metadata or ())
        except SightlineError as error:
            return _refusing(error, service, method, kind)
        return handler

    def open(self, trouble: SightlineError | None = None) -> None:
        """Serve the calls that wait for the start; with `trouble`, answer them with this error instead."""
        self._trouble = trouble
        self._opened.set()

    async def _hold(self) -> SightlineError | None:
        """Wait until the service has started. If it could not, or the call may not wait, the result says why."""
        if not self._opened.is_set():
            if self._held >= self._most_held:
                return Overloaded("the service is starting, and too many calls wait for it: try again", retry_after=1)
            self._held += 1
            try:
                await self._opened.wait()
            finally:
                self._held -= 1
        return self._trouble

    @property
    def running(self) -> int:
        """Calls in flight."""
        return self._running

    @contextlib.asynccontextmanager
    async def _around(self, call: Call) -> AsyncIterator[Callable[[Any], None]]:
        _begin(call)
        if call.service not in INFRASTRUCTURE:
            self._count(1)
            call.context.add_done_callback(lambda _: self._count(-1))  # when the response is out
        async with measured(call), mapped(call), self._gate.enter(call.service, call.name) as charge:
            yield charge

    def _count(self, change: int) -> None:
        self._running += change
        if self._running:
            self.idle.clear()
        else:
            self.idle.set()

    def _wrap(self, handler: Handler, path: str) -> Handler:
        _, service, method = path.split("/")
        kind = metrics.go_type(handler.request_streaming, handler.response_streaming)
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        received = metrics.RECEIVED.labels(kind, service, method)
        sent = metrics.SENT.labels(kind, service, method)

        def incoming(request: Any, charge: Callable[[Any], None]) -> Any:
            if handler.request_streaming:
                return _each(request, received.inc)
            received.inc()
            message = handler.request_deserializer(request)
            charge(message)
            return message

        async def unary(request: Any, context: Any) -> Any:
            call = Call(service, method, kind, context, self._gate.team())
            async with self._around(call) as charge:
                response = behaviour(incoming(request, charge), context)
                if inspect.isawaitable(response):
                    response = await response
                raw = handler.response_serializer(response)
                sent.inc()
                return raw

        # Not a generator: if cancelled while suspended, it ends later and elsewhere; a coroutine ends here at once.
        async def stream(request: Any, context: Any) -> None:
            call = Call(service, method, kind, context, self._gate.team())
            async with self._around(call) as charge:
                responses = behaviour(incoming(request, charge), context)
                if inspect.isawaitable(responses):  # a handler that uses `context.write`
                    await responses
                    return
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await call.announce()
                        await context.write(response)
                        sent.inc()

        # A single message is parsed and serialised inside the layers, so that a failure is answered and counted.
        parse = handler.request_deserializer if handler.request_streaming else None
        if handler.response_streaming:
            return _MAKERS[kind](stream, parse, handler.response_serializer)
        return _MAKERS[kind](unary, parse, None)


def _begin(call: Call) -> None:
    logs.request_id.set(call.request_id)  # the task is the call's own: nothing to reset
    call.context.set_trailing_metadata(((REQUEST_ID, call.request_id),))


def _refusing(error: SightlineError, service: str, method: str, kind: str) -> Handler:
    """Answer with the error. Always as a stream of requests: gRPC then reads none of them."""

    async def refuse(_requests: Any, context: Any) -> None:
        call = Call(service, method, kind, context)
        _begin(call)
        async with measured(call):
            await call.abort(error)

    return grpc.stream_stream_rpc_method_handler(refuse)


_MAKERS: dict[str, Callable[..., Handler]] = {
    "unary": grpc.unary_unary_rpc_method_handler,
    "server_stream": grpc.unary_stream_rpc_method_handler,
    "client_stream": grpc.stream_unary_rpc_method_handler,
    "bidi_stream": grpc.stream_stream_rpc_method_handler,
}


async def _each(messages: AsyncIterator[Any], count: Callable[[], None]) -> AsyncIterator[Any]:
    async for message in messages:
        count()
        yield message
