"""Channels to Triton, and checks before it serves."""

from __future__ import annotations

from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 310_000),  # Triton closes connections that ping more often than every 300 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A new channel is a new connection: the old one may be silent, which keepalive takes minutes to notice.
    ("grpc.use_local_subchannel_pool", 1),
    # If a name has several addresses, such as a headless Service before several Tritons, all are used.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
]


def connect(address: str) -> InferenceServerClient:
    """A client for host:port; call it in the running event loop and close it there."""
    options = list(_OPTIONS)
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))  # gRPC would send even loopback through $http_proxy
    return InferenceServerClient(address, channel_args=options)


def is_loopback(address: str) -> bool:
    """Whether host:port is certainly on this host."""
    return address.startswith(("127.", "localhost:", "[::1]"))


async def server_ready(address: str) -> bool:
    """Whether the server at host:port answers and all its models are ready."""
    async with connect(address) as client:
        try:
            return bool(await client.is_server_ready(client_timeout=2))
        except InferenceServerException:
            return False
