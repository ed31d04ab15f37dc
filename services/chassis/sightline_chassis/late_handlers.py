"""Add handlers after the server has started, which gRPC itself does not allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc


class LateHandlers(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """One handler that gRPC knows from the start, and that delegates to those added later.

    Code that adds handlers uses it as the server: `add_ScorerServiceServicer_to_server(servicer, late)`.

    Args:
        server: not started yet.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self._handlers: list[grpc.GenericRpcHandler] = []
        server.add_generic_rpc_handlers((self,))

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add these handlers."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """Does nothing: the same methods are added as generic handlers."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; None if there is none."""
        found = (handler.service(handler_call_details) for handler in self._handlers)
        return next((handler for handler in found if handler is not None), None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)
