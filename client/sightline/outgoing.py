"""What happens around each call of a client: the token's header, and observers. Light."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import grpc

Ended: TypeAlias = Callable[[grpc.StatusCode], None]
Observer: TypeAlias = Callable[[str, str], Ended]
"""Called when a call begins, with its kind ("unary", "server_stream", ...) and its path ("/package.Service/Method");
what it returns is called with the code when the call has ended."""

Header: TypeAlias = Callable[[], tuple[str, str]]

_KINDS = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}


class _Details(NamedTuple):
    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _SyncDetails(_Details, grpc.ClientCallDetails):
    """gRPC has no public class for them."""


class _Around:
    def __init__(self, header: Header | None, observers: Sequence[Observer]) -> None:
        self._header, self._observers = header, tuple(observers)

    def _begin(self, kind: str, method: str | bytes) -> Ended:
        path = method.decode() if isinstance(method, bytes) else method
        ends = [observer(_KINDS[kind], path) for observer in self._observers]

        def ended(code: grpc.StatusCode) -> None:
            for end in ends:
                end(code)

        return ended


class Outgoing(
    _Around,
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """For sync channels."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._go("unary_unary", continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._go("unary_stream", continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._go("stream_unary", continuation, client_call_details, request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._go("stream_stream", continuation, client_call_details, request_iterator)

    def _go(self, kind: str, continuation: Any, details: Any, request: Any) -> Any:
        metadata = list(details.metadata or ())
        if self._header is not None:
            metadata.append(self._header())
        more = (getattr(details, name, None) for name in ("credentials", "wait_for_ready", "compression"))
        ended = self._begin(kind, details.method)
        call = continuation(_SyncDetails(details.method, details.timeout, metadata, *more), request)
        call.add_done_callback(lambda done: ended(done.code()))
        return call


class _AioAround(_Around):
    async def _go(self, kind: str, continuation: Any, details: Any, request: Any) -> Any:
        if self._header is not None:
            metadata = grpc.aio.Metadata(*(details.metadata or ()), self._header())
            details = grpc.aio.ClientCallDetails(
                details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
            )
        ended = self._begin(kind, details.method)
        call = await continuation(details, request)
        if self._observers:
            call.add_done_callback(lambda done: _report(done, ended))
        return call


class _UnaryUnary(_AioAround, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._go("unary_unary", continuation, client_call_details, request)


class _UnaryStream(_AioAround, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._go("unary_stream", continuation, client_call_details, request)


class _StreamUnary(_AioAround, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._go("stream_unary", continuation, client_call_details, request_iterator)


class _StreamStream(_AioAround, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._go("stream_stream", continuation, client_call_details, request_iterator)


def aio_interceptors(header: Header | None, observers: Sequence[Observer]) -> list[grpc.aio.ClientInterceptor]:
    """For aio channels, which take one interceptor for each kind of call."""
    return [cls(header, observers) for cls in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


_reports: set[asyncio.Task[None]] = set()


def _report(call: Any, ended: Ended) -> None:
    async def report() -> None:
        ended(await call.code())  # there already, but gRPC has it behind a coroutine only

    task = asyncio.ensure_future(report())
    _reports.add(task)
    task.add_done_callback(_reports.discard)
