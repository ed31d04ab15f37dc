"""OTLP receiver: takes spans over HTTP, as a collector does, from OpenTelemetry for Python and Triton's for C++."""

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span, ids in hexadecimal."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: str
    failed: bool
    facts: dict[str, Any]
    links: tuple[str, ...]


@dataclass
class Receiver:
    """Where it listens, and what it received."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    def of(self, service: str) -> list[Span]:
        """Spans of one service, in the order of arrival."""
        return [span for span in self.spans if span.service == f"sightline-{service}"]


def _read(body: bytes, kind: str) -> list[Span]:
    if kind.startswith("application/json"):
        tree, hexadecimal = json.loads(body), str
    else:
        tree = MessageToDict(ExportTraceServiceRequest.FromString(body))

        def hexadecimal(text: str) -> str:
            return base64.b64decode(text).hex()

    found = []
    for resource in tree["resourceSpans"]:
        service = _facts(resource["resource"])["service.name"]
        for one in (one for scope in resource["scopeSpans"] for one in scope["spans"]):
            found.append(
                Span(
                    service,
                    one["name"],
                    hexadecimal(one["traceId"]).lower(),
                    hexadecimal(one["spanId"]).lower(),
                    hexadecimal(one.get("parentSpanId", "")).lower(),
                    str(one.get("kind", "")),
                    one.get("status", {}).get("code") in ("STATUS_CODE_ERROR", 2),
                    _facts(one),
                    tuple(hexadecimal(link["spanId"]) for link in one.get("links", ())),
                )
            )
    return found


def _facts(holder: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in holder.get("attributes", ())}


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            receiver.spans += _read(body, self.headers["Content-Type"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
