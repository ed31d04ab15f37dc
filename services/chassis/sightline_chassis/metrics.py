"""Metrics that every service has, and the HTTP server for them.

They are made once per process in prometheus_client's default registry; a service adds its own. The names, types and
codes of `grpc_server_*` follow Go's grpc-ecosystem, for which dashboards exist. RPCs that never reach the service (a
message over the size limit, an unknown method) are not counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, make_wsgi_app

disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

_RPC = ("grpc_type", "grpc_service", "grpc_method")

STARTED = Counter("grpc_server_started_total", "RPCs started.", _RPC)
HANDLED = Counter("grpc_server_handled_total", "RPCs that ended, with any outcome.", (*_RPC, "grpc_code"))
HANDLING = Histogram("grpc_server_handling_seconds", "Time from start to end of an RPC.", _RPC, buckets=SECONDS)
RECEIVED = Counter("grpc_server_msg_received_total", "Messages received.", _RPC)
SENT = Counter("grpc_server_msg_sent_total", "Messages sent.", _RPC)

BUILD_INFO = Gauge("sightline_build_info", "Always 1; the labels say what is running.", ("version", "commit"))
INFLIGHT = Gauge("sightline_inflight_requests", "Requests in progress.")
QUEUE_DEPTH = Gauge("sightline_queue_depth", "Requests waiting for their turn.")
QUEUE_WAIT = Histogram("sightline_queue_wait_seconds", "Time that a request waits.", buckets=(0.001, *SECONDS))
REJECTED = Counter("sightline_rejected_total", "Requests refused by admission.", ("reason",))
UNAUTHENTICATED = Counter("sightline_unauthenticated_total", "Calls refused for lack of a known token.", ("reason",))
TEAM_CALLS = Counter("sightline_team_calls_total", "RPCs that ended, by the calling team.", ("team", "grpc_code"))
TEAM_INFLIGHT = Gauge("sightline_team_inflight_requests", "Calls of a team in flight, waiting included.", ("team",))
TEAM_UNITS = Counter("sightline_team_units_total", "Texts and images that a team used.", ("team", "unit"))
TEAM_REFUSED = Counter("sightline_team_refused_total", "Calls refused by a limit of their team.", ("team", "limit"))
TEAM_STORED = Gauge(
    "sightline_team_stored", "What is stored for a team: image_bytes, policies, pushed_policy_bytes.", ("team", "what")
)
TLS_EXPIRY = Gauge(
    "sightline_tls_cert_expiry_timestamp_seconds", "When the first certificate in a file expires.", ("certificate",)
)
RELOAD_FAILING = Gauge(
    "sightline_reload_failing", "1 while changed files cannot be used and the previous ones stay in force.", ("what",)
)
BACKEND_UP = Gauge("sightline_backend_up", "Whether the service's backend works.", ("backend",))
BACKEND_SECONDS = Histogram(
    "sightline_backend_request_seconds", "Time of a call to a backend.", ("backend", "outcome"), buckets=SECONDS
)
BACKEND_RETRIES = Counter("sightline_backend_retries_total", "Calls to a backend that were retried.", ("backend",))
LAST_SUCCESS = Gauge("sightline_last_success_timestamp_seconds", "When a call of the service last ended with OK.")
CONFIG_INFO = Gauge("sightline_config_info", "Always 1; the label is the hash of the settings.", ("config_hash",))
for _reason in ("missing", "malformed", "unknown"):  # shown at 0 from the start
    UNAUTHENTICATED.labels(_reason)
LOOP_LAG = Histogram(
    "sightline_event_loop_lag_seconds", "Delay of a timer on the event loop.", buckets=(0.001, *SECONDS)
)

_GO_CODES = {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}


@contextlib.contextmanager
def backend_call(backend: str) -> Iterator[None]:
    """Time a call to a backend inside the block; the outcome is "ok", or "failed" if it raises."""
    start, outcome = time.monotonic(), "failed"
    try:
        yield
        outcome = "ok"
    finally:
        BACKEND_SECONDS.labels(backend, outcome).observe(time.monotonic() - start)


def go_code(code: grpc.StatusCode) -> str:
    """The code in Go's spelling: `InvalidArgument`, `OK`, `Canceled`."""
    return _GO_CODES.get(code) or code.name.title().replace("_", "")


def go_type(request_streaming: bool, response_streaming: bool) -> str:
    """The kind of RPC in Go's spelling: `unary`, `client_stream`, `server_stream`, `bidi_stream`."""
    if request_streaming:
        return "bidi_stream" if response_streaming else "client_stream"
    return "server_stream" if response_streaming else "unary"


def preregister(services: Iterable[str]) -> None:
    """Export every method and code at 0 from the start: otherwise `rate()` would miss the first error of each kind."""
    for name in services:
        service = descriptor_pool.Default().FindServiceByName(name)
        for method in service.methods:
            labels = (go_type(method.client_streaming, method.server_streaming), name, method.name)
            for metric in (STARTED, HANDLING, RECEIVED, SENT):
                metric.labels(*labels)
            for code in grpc.StatusCode:
                HANDLED.labels(*labels, go_code(code))


def show_teams(names: Iterable[str]) -> None:
    """Export teams at 0, so that `rate()` sees the first call of each."""
    for name in names:
        TEAM_INFLIGHT.labels(name)
        TEAM_CALLS.labels(name, "OK")


def forget_teams(names: Iterable[str]) -> None:
    """Drop all series of removed teams, so that their number stays bounded however often the tokens file changes."""
    for name in names:
        for metric in (TEAM_CALLS, TEAM_INFLIGHT, TEAM_UNITS, TEAM_REFUSED, TEAM_STORED):
            metric.remove_by_labels({"team": name})


def refused_by_team_limit(team: str, limit: str) -> None:
    """Count a refusal by one of a team's limits."""
    TEAM_REFUSED.labels(team, limit).inc()
    REJECTED.labels(f"team_{limit}").inc()


def set_build_info() -> None:
    """Fill `sightline_build_info`; the commit comes from SIGHTLINE_COMMIT, set when an image is built."""
    try:
        version = importlib.metadata.version("sightline")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown"
    BUILD_INFO.labels(version, os.environ.get("SIGHTLINE_COMMIT", "unknown")).set(1)


def set_config_info(settings: Mapping[str, Any]) -> None:
    """Fill `sightline_config_info` with a hash of the settings, which reveals replicas that differ."""
    text = json.dumps(settings, sort_keys=True)
    CONFIG_INFO.clear()
    CONFIG_INFO.labels(hashlib.sha256(text.encode()).hexdigest()[:12]).set(1)


class MetricsServer:
    """Serves HTTP /metrics from its own threads.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        cls = _IPv6Server if ":" in host else _HttpServer
        self._server = make_server(host, port, make_wsgi_app(), cls, _SilentHandler)
        self.port: int = self._server.server_port
        # Not prometheus_client's start_http_server: it takes half a second to stop.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HttpServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _IPv6Server(_HttpServer):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Does not log scrapes."""
