"""Scripted server: the base of the scripted services for client tests."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sightline.errors import DETAILS_KEY, SightlineError, to_status


def abort(context: Any, error: SightlineError) -> NoReturn:
    """End the call as our services do."""
    context.set_trailing_metadata(((DETAILS_KEY, to_status(error).SerializeToString()),))
    context.abort(error.code, error.message)
    raise error


@contextmanager
def listening(
    add: Callable[[Any, grpc.Server], None], servicer: Any, name: str, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Serve this servicer over gRPC, with health for `name`, encrypted if there are credentials; yields the address."""
    server = grpc.server(ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)])
    add(servicer, server)
    # With non-blocking health, the default, a watcher that leaves at once locks server and servicer forever.
    state = health.HealthServicer(experimental_non_blocking=False)
    state.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    if credentials is None:
        bound = server.add_insecure_port("127.0.0.1:0")
    else:
        bound = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(None).wait()
