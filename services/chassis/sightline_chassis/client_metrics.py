"""Metrics of the calls that this process makes, in Go's spelling.

They also count what a server never sees: refused connections, messages over a limit, deadlines that passed in transit.
"""

from __future__ import annotations

import time

import grpc
from prometheus_client import Counter, Histogram
from sightline import channel
from sightline.outgoing import Ended

from sightline_chassis.metrics import SECONDS, go_code

_RPC = ("grpc_type", "grpc_service", "grpc_method")

STARTED = Counter("grpc_client_started_total", "RPCs started by this process.", _RPC)
HANDLED = Counter("grpc_client_handled_total", "RPCs of this process that ended.", (*_RPC, "grpc_code"))
HANDLING = Histogram(
    "grpc_client_handling_seconds", "Time of an RPC, gRPC's own retries included.", _RPC, buckets=SECONDS
)


def install() -> None:
    """Measure the calls of all channels opened from now on."""
    channel.observe_calls(_observe)


def _observe(kind: str, path: str) -> Ended:
    service, _, method = path.strip("/").partition("/")
    labels, start = (kind, service, method), time.monotonic()
    STARTED.labels(*labels).inc()

    def ended(code: grpc.StatusCode) -> None:
        HANDLED.labels(*labels, go_code(code)).inc()
        HANDLING.labels(*labels).observe(time.monotonic() - start)

    return ended
