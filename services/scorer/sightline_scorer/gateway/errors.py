"""Errors over HTTP: the status of a gRPC failure, by Google's mapping."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import grpc
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sightline.errors import InternalError, InvalidInput, NotFound, Overloaded, SightlineError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline_scorer.gateway.bodies import FailureBody, error_body

logger = logging.getLogger(__name__)

ALWAYS_OPEN = ("/healthz", "/favicon.ico")
"""Paths that need no token and do not count for limits."""

STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP status of a gRPC status; 500 for the rest."""


def status_of(error: SightlineError) -> int:
    """The HTTP status of an error."""
    return STATUS.get(error.code, 500)


def failure(error: SightlineError, status: int | None = None) -> Response:
    """The response for an error, with Retry-After if a retry helps."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    body = FailureBody(error=error_body(error)).model_dump_json()
    return Response(body, status or status_of(error), headers, "application/json")


def handle(app: FastAPI) -> None:
    """Give every failure of the application the same form."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, SightlineError)
        return failure(error)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        return failure(InvalidInput(f"the body does not fit: {faults}", reason="BODY_MALFORMED"))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return failure(NotFound(f"there is no {request.url.path}: see /docs", reason="NO_SUCH_PATH"))
        reason = "BODY_TOO_LARGE" if error.status_code == 413 else "REQUEST_REFUSED"
        return failure(InvalidInput(str(error.detail), reason=reason), error.status_code)

    async def unknown(request: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return failure(InternalError("a bug of the gateway; its log has the traceback"))

    app.add_exception_handler(SightlineError, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)


class BoundedRequests:
    """Refuses requests beyond a number at a time; idle connections do not count."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_OPEN:
            await self._app(scope, receive, send)
            return
        if self._running >= self._limit:
            error = Overloaded(f"{self._limit} requests run already (http.max_requests); try again", retry_after=1)
            await failure(error)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


def lenient_json(body: dict[str, Any]) -> Response:
    """JSON that may contain NaN, as Python's parsers accept it."""
    return Response(json.dumps(body), media_type="application/json")
