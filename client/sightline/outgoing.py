"""What happens around each call of a client: the token's header, observers, a trace. Light."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import grpc

Ended: TypeAlias = Callable[[grpc.StatusCode], None]
Observer: TypeAlias = Callable[[str, str], Ended]
"""Called when a call begins, with its kind ("unary", "server_stream", ...) and its path ("/package.Service/Method");
what it returns is called with the code when the call has ended."""

Tracer: TypeAlias = Callable[[str, str], tuple[Mapping[str, str], Ended]]
"""Like an Observer, but also returns headers for the call to send."""

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
    """gRPC has no public class for call details."""


class _Around:
    def __init__(self, header: Header | None, observers: Sequence[Observer], tracers: Sequence[Tracer]) -> None:
        self._header, self._observers, self._tracers = header, tuple(observers), tuple(tracers)

    def _begin(self, kind: str, method: str | bytes) -> tuple[list[tuple[str, str]], Ended]:
        path = method.decode() if isinstance(method, bytes) else method
        headers = [] if self._header is None else [self._header()]
        ends = [observer(_KINDS[kind], path) for observer in self._observers]
        for tracer in self._tracers:
            sent, end = tracer(_KINDS[kind], path)
            headers += sent.items()
            ends.append(end)

        def ended(code: grpc.StatusCode) -> None:
            for end in ends:
                end(code)

        return headers, ended


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
        headers, ended = self._begin(kind, details.method)
        metadata = [*(details.metadata or ()), *headers]
        more = (getattr(details, name, None) for name in ("credentials", "wait_for_ready", "compression"))
        call = continuation(_SyncDetails(details.method, details.timeout, metadata, *more), request)
        call.add_done_callback(lambda done: ended(done.code()))
        return call


class _AioAround(_Around):
    async def _go(self, kind: str, continuation: Any, details: Any, request: Any) -> Any:
        headers, ended = self._begin(kind, details.method)
        if headers:
            metadata = grpc.aio.Metadata(*(details.metadata or ()), *headers)
            details = grpc.aio.ClientCallDetails(
                details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
            )
        call = await continuation(details, request)
        if self._observers or self._tracers:
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


def aio_interceptors(
    header: Header | None, observers: Sequence[Observer], tracers: Sequence[Tracer]
) -> list[grpc.aio.ClientInterceptor]:
    """For aio channels, which need one interceptor for each kind of call."""
    return [cls(header, observers, tracers) for cls in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


_reports: set[asyncio.Task[None]] = set()


def _report(call: Any, ended: Ended) -> None:
    async def report() -> None:
        ended(await call.code())  # known already, but gRPC offers it only as a coroutine

    task = asyncio.ensure_future(report())
    _reports.add(task)
    task.add_done_callback(_reports.discard)
