"""How a client reaches a service: TLS, token, message limits, keepalive, balancing; for sync and aio alike.

A target is any gRPC target: `127.0.0.1:50051`, `dns:///scorer-headless.ns.svc:50051`, `ipv4:10.0.0.1:1,10.0.0.2:1`.
gRPC does not retry; `sightline.patience` does.

    open_channel("dns:///scorer:50051", tls=Tls(Path("ca.pem")), token=Token(file=Path("/auth/token")))
"""

from __future__ import annotations

import json
from typing import TypeAlias

import grpc

from sightline.credentials import Tls, Token
from sightline.errors import PreconditionFailed
from sightline.outgoing import Header, Observer, Outgoing, Tracer, aio_interceptors
from sightline.target import check_target, is_loopback

__all__ = [
    "Options",
    "Tls",
    "Token",
    "channel_options",
    "observe_calls",
    "open_aio_channel",
    "open_channel",
    "trace_calls",
]

Options: TypeAlias = list[tuple[str, int | str]]

_observers: list[Observer] = []
_tracers: list[Tracer] = []


def observe_calls(observer: Observer) -> None:
    """Observe the calls of all channels that this process opens from now on. A second call has no effect."""
    if observer not in _observers:
        _observers.append(observer)


def trace_calls(tracer: Tracer) -> None:
    """Trace the calls of all channels that this process opens from now on. A second call has no effect."""
    if tracer not in _tracers:
        _tracers.append(tracer)


def channel_options(*, max_message_mib: int = 64, health_service: str | None = None) -> Options:
    """Channel arguments.

    Args:
        max_message_mib: largest message in MiB, both ways; the server has its own limit.
        health_service: a service name for client-side health checks: a server whose health is NOT_SERVING gets no new
            calls while another one serves.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    limit = max_message_mib * 1024 * 1024
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # also bounds keepalive's pings: the default is a minute
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
    token: str | Token | None = None,
    max_message_mib: int = 64,
    health_service: str | None = None,
) -> grpc.Channel:
    """A channel for sync stubs; share one per target and close it.

    Args:
        target: see the module.
        tls: encrypts the channel; None means plaintext.
        token: a bearer token, sent with every call.
        max_message_mib: see `channel_options`, as `health_service`.

    Raises:
        InvalidInput: TARGET_MALFORMED.
        PreconditionFailed: a file cannot be read, or the token would go over the network in plaintext.
    """
    options = _options(target, tls, max_message_mib, health_service)
    header = _header(target, tls, token)
    if tls is not None:
        channel = grpc.secure_channel(target, tls.credentials(), options)
    else:
        channel = grpc.insecure_channel(target, options)
    if header is None and not _observers and not _tracers:
        return channel
    return grpc.intercept_channel(channel, Outgoing(header, _observers, _tracers))


def open_aio_channel(
    target: str,
    *,
    tls: Tls | None = None,
    token: str | Token | None = None,
    max_message_mib: int = 64,
    health_service: str | None = None,
) -> grpc.aio.Channel:
    """As `open_channel` for aio stubs, to be opened inside the running event loop."""
    options = _options(target, tls, max_message_mib, health_service)
    header = _header(target, tls, token)
    needed = header or _observers or _tracers
    interceptors = aio_interceptors(header, _observers, _tracers) if needed else None
    if tls is not None:
        return grpc.aio.secure_channel(target, tls.credentials(), options, interceptors=interceptors)
    return grpc.aio.insecure_channel(target, options, interceptors=interceptors)


def _options(target: str, tls: Tls | None, max_message_mib: int, health_service: str | None) -> Options:
    options = channel_options(max_message_mib=max_message_mib, health_service=health_service)
    if is_loopback(check_target(target)):
        options.append(("grpc.enable_http_proxy", 0))  # gRPC would send even loopback through $http_proxy
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _header(target: str, tls: Tls | None, token: str | Token | None) -> Header | None:
    # By an interceptor, also under TLS: gRPC's own call credentials run Python in threads of its core, at each call.
    if token is None:
        return None
    bearer = Token(token) if isinstance(token, str) else token
    bearer.read()  # an unusable token fails now, not at the first call
    if tls is None and not bearer.allow_plaintext and not is_loopback(target):
        raise PreconditionFailed(
            f"the token would go to {target} in plaintext: give tls=Tls(...), or Token(..., allow_plaintext=True) "
            "if nobody else can listen",
            reason="TOKEN_IN_PLAINTEXT",
        )
    return bearer.header
