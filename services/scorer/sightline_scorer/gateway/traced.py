"""Traces of the gateway: a request is a child span of its caller's, and the calls to the scorer continue it."""

from __future__ import annotations

from sightline_chassis import traces
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline_scorer.gateway.errors import ALWAYS_OPEN


class TracedRequests:
    """Puts each request into its caller's trace (W3C header `traceparent`), or starts a trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_OPEN:
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(traces.TRACEPARENT.encode(), b"").decode("latin-1")
        with traces.serving_http(scope["method"], scope["path"], sent) as served:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    served.status = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, noted)
            finally:
                served.route = getattr(scope.get("route"), "path", "")
