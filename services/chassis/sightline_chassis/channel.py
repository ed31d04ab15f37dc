"""How a client reaches a service: message limits, keepalive, balancing and retries, the same for sync and aio.

A target is any gRPC target: `127.0.0.1:50051`, `dns:///scorer-headless.ns.svc:50051`, `ipv4:10.0.0.1:1,10.0.0.2:1`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from sightline_chassis.errors import Unsupported

Options: TypeAlias = list[tuple[str, int | str]]

MAX_ATTEMPTS = 5  # gRPC's own hard limit, the first try included


@dataclass(frozen=True)
class Tls:
    """PEM files for an encrypted channel; `certificate` and `key` only where the server asks for them."""

    root: Path
    certificate: Path | None = None
    key: Path | None = None


def channel_options(
    *, max_message_mib: int = 64, retry: Sequence[str] = (), health_service: str | None = None
) -> Options:
    """Channel arguments.

    Args:
        max_message_mib: largest message in MiB, both ways; the server has its own limit.
        retry: methods as "package.Service/Method" that gRPC tries again on UNAVAILABLE (at most 5 times in all, with
            jittered backoff). Name only those that may run twice.
        health_service: a service name for client-side health checks: a server that says NOT_SERVING gets no new
            calls while another one serves.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retry:
        names = [dict(zip(("service", "method"), name.strip("/").split("/"), strict=True)) for name in retry]
        policy = {
            "maxAttempts": MAX_ATTEMPTS,
            "initialBackoff": "0.2s",
            "maxBackoff": "5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    limit = max_message_mib * 1024 * 1024
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # A call whose request does not fit in this buffer (256 KiB by default, less than a photo) is not retried.
        ("grpc.per_rpc_retry_buffer_size", limit),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's default grows to two minutes: too long to notice that a restarted service is back.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.service_config", json.dumps(config)),
    ]


def open_channel(
    target: str,
    *,
    tls: Tls | None = None,
    token: str | None = None,
    max_message_mib: int = 64,
    retry: Sequence[str] = (),
    health_service: str | None = None,
) -> grpc.Channel:
    """A channel for sync stubs; share one per target and close it."""
    _refuse_credentials(tls, token)
    return grpc.insecure_channel(target, _options(target, max_message_mib, retry, health_service))


def open_aio_channel(
    target: str,
    *,
    tls: Tls | None = None,
    token: str | None = None,
    max_message_mib: int = 64,
    retry: Sequence[str] = (),
    health_service: str | None = None,
) -> grpc.aio.Channel:
    """A channel for aio stubs, to be opened inside the running event loop; share one per target and close it."""
    _refuse_credentials(tls, token)
    return grpc.aio.insecure_channel(target, _options(target, max_message_mib, retry, health_service))


def _options(target: str, max_message_mib: int, retry: Sequence[str], health_service: str | None) -> Options:
    options = channel_options(max_message_mib=max_message_mib, retry=retry, health_service=health_service)
    if target.removeprefix("dns:///").startswith(("127.", "localhost:", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))  # gRPC would send even loopback through $http_proxy
    return options


def _refuse_credentials(tls: Tls | None, token: str | None) -> None:
    # Better refused than silently in the clear.
    if tls is not None or token is not None:
        raise Unsupported("TLS and tokens are not there yet: open the channel without them on a trusted network")
