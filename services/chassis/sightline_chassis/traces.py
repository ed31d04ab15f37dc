"""Traces: one W3C trace from a stage of the loop through sampler, scorer, Triton and engines behind HTTP.

Uses OpenTelemetry's API; spans are sent by OTLP over HTTP, which needs the extra `traces`. Traces are off unless
`traces.endpoint` is set. While they are off, OpenTelemetry is not imported, and the logs only get the trace id that a
caller sends.

    begin(settings.traces, "scorer")
    with span("sample", iteration=3):                 # calls of our clients inside continue with the trace
        await sampler.sample(...)
    end()
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
from sightline import channel
from sightline.errors import PreconditionFailed
from sightline.outgoing import Ended

from sightline_chassis import logs
from sightline_chassis.sections import TraceSettings

TRACEPARENT = "traceparent"
_FORM = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that mean a server error, by OpenTelemetry's conventions."""

_provider: Any = None
_tracer: Any = None


def begin(settings: TraceSettings, service: str) -> None:
    """Send this process's spans from now on, if the settings name an endpoint.

    Raises:
        PreconditionFailed: the extra `traces` is not installed.
    """
    global _provider, _tracer
    if settings.endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise PreconditionFailed(
            f"traces.endpoint needs a package that is not installed ({error}): pip install 'sightline[traces]'",
            reason="EXTRA_MISSING",
        ) from None
    end()
    about = Resource.create({"service.name": f"sightline-{service}", "service.version": _version()})
    _provider = TracerProvider(resource=about, sampler=ParentBased(TraceIdRatioBased(settings.ratio)))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(traces_url(settings.endpoint), timeout=5)))
    _tracer = _provider.get_tracer("sightline", _version())
    channel.trace_calls(_outgoing)


def end() -> None:
    """Send the remaining spans."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
        _provider = _tracer = None


def traces_url(endpoint: str) -> str:
    """The URL for spans of an OTLP endpoint."""
    return f"{endpoint.rstrip('/')}/v1/traces"


def here() -> Any:
    """The span that this task is in, to `join` it elsewhere; None while traces are off."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


def headers() -> dict[str, str]:
    """Headers for a call to another service that continue the trace; empty if there is no trace or it is not kept."""
    context = here()
    if context is None or not context.trace_flags.sampled:
        return {}
    return _header(context)


@contextlib.contextmanager
def span(name: str, **facts: str | int | float) -> Iterator[None]:
    """A span of this process's own work, inside the task's current span."""
    with _span(name, "INTERNAL", None, facts):
        yield


@contextlib.contextmanager
def joined(name: str, joining: Iterable[Any], **facts: str | int | float) -> Iterator[None]:
    """A span of work for several spans at once: a child of the first, linked to the others.

    Args:
        joining: the results of `here` in these spans.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry import trace

    known = list({context.span_id: context for context in joining if context is not None}.values())
    above = trace.set_span_in_context(trace.NonRecordingSpan(known[0])) if known else None
    with _span(name, "CLIENT", above, facts, [trace.Link(context) for context in known[1:]]):
        yield


@contextlib.contextmanager
def calling(name: str, **facts: str | int | float) -> Iterator[dict[str, str]]:
    """A span of a call by another protocol, a child of the task's current span, and the header to continue it there.

    Neither exists if the task has no span, as in health checks of an engine. The span does not become the task's
    current one, since a stream may be ended in another task.
    """
    if here() is None:
        yield {}
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    live = _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=dict(facts))
    try:
        yield _header(live.get_span_context())
    except BaseException as error:
        live.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        live.end()


@contextlib.contextmanager
def serving(path: str, metadata: Sequence[tuple[str, Any]], request_id: str) -> Iterator[_Served]:
    """The span of a served call, a child of the caller's span if it sent one. The call's logs have the trace id.

    Args:
        path: "package.Service/Method".
        metadata: the call's headers.
        request_id: the call's.
    """
    sent = next((value for key, value in metadata if key == TRACEPARENT), "")
    above, served = _above(sent), _Served()
    service, _, method = path.partition("/")
    facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "sightline.request_id": request_id}
    with _span(path, "SERVER", above, facts) as live:
        try:
            yield served
        finally:
            if live is not None:
                _close(live, served.code)


@contextlib.contextmanager
def serving_http(method: str, path: str, sent: str) -> Iterator[ServedHttp]:
    """As `serving`, for a request over HTTP.

    Args:
        method: the request's.
        path: the path of its URL.
        sent: its header `traceparent`; "" if there is none.
    """
    above, served = _above(sent), ServedHttp()
    with _span(method, "SERVER", above, {"http.request.method": method, "url.path": path}) as live:
        try:
            yield served
        finally:
            if live is not None:
                _close_http(live, method, served)


class _Served:
    """The outcome of a call."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN


class ServedHttp:
    """The outcome of a request over HTTP.

    Attributes:
        status: the answer's; 500 until an answer was started.
        route: the path's pattern, which names the span; "" if none matched.
    """

    status: int = 500
    route: str = ""


def _above(sent: object) -> Any:
    """The caller's span, from its header; None while traces are off. The logs have its trace id from here on."""
    found = _FORM.fullmatch(sent) if isinstance(sent, str) else None
    if found is not None:
        logs.trace_id.set(found.group(1))  # the task is the call's own: nothing to reset
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({TRACEPARENT: sent} if found is not None else {})


@contextlib.contextmanager
def _span(
    name: str, kind: str, above: Any, facts: Mapping[str, str | int | float], links: Sequence[Any] = ()
) -> Iterator[Any]:
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    with _tracer.start_as_current_span(
        name,
        above,
        SpanKind[kind],
        dict(facts),
        links,
        record_exception=False,
        set_status_on_exception=kind != "SERVER",
    ) as live:
        token = logs.trace_id.set(f"{live.get_span_context().trace_id:032x}")
        try:
            yield live
        finally:
            logs.trace_id.reset(token)


def _outgoing(kind: str, path: str) -> tuple[dict[str, str], Ended]:
    """A span of a call by one of our clients, and the header with which the callee continues it."""
    if _tracer is None:
        return {}, lambda code: None
    from opentelemetry import trace

    service, _, method = path.strip("/").partition("/")
    facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    live = _tracer.start_span(path.strip("/"), kind=trace.SpanKind.CLIENT, attributes=facts)

    def ended(code: grpc.StatusCode) -> None:
        _close(live, code, faults=None)
        live.end()

    return _header(live.get_span_context()), ended


def _header(context: Any) -> dict[str, str]:
    flags = "01" if context.trace_flags.sampled else "00"
    return {TRACEPARENT: f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"}


def _close(live: Any, code: grpc.StatusCode, faults: set[str] | None = _FAULTS) -> None:
    from opentelemetry.trace import Status, StatusCode

    live.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not grpc.StatusCode.OK and (faults is None or code.name in faults):
        live.set_status(Status(StatusCode.ERROR, code.name))


def _close_http(live: Any, method: str, served: ServedHttp) -> None:
    from opentelemetry.trace import Status, StatusCode

    if served.route:
        live.update_name(f"{method} {served.route}")
        live.set_attribute("http.route", served.route)
    live.set_attribute("http.response.status_code", served.status)
    if served.status >= 500:
        live.set_status(Status(StatusCode.ERROR, str(served.status)))


def _version() -> str:
    try:
        return importlib.metadata.version("sightline")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
