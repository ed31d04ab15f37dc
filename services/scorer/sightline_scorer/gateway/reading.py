"""Reads request bodies: bounded in bytes and time, and of the kind that the path accepts.

A body is read completely before its request counts as running, so half-sent ones do not occupy a place.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sightline.errors import InvalidInput, Overloaded
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sightline_scorer.gateway.errors import failure
from sightline_scorer.gateway.settings import HttpSettings

UPLOAD = "/v1/images"
_JSON = ("/v1/score", "/v1/score_many", "/get_reward", "/unirl/score")
_FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")


class BoundedBodies:
    """Refuses a body over the limit (by its stated length at once, otherwise as soon as it exceeds it), one that
    arrives too slowly, one of a kind that the path does not accept, and more bodies than fit into memory together."""

    def __init__(self, app: ASGIApp, http: HttpSettings) -> None:
        self._app, self._http = app, http
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"")
        if scope["method"] == "POST" and (wrong := _wrong_type(scope["path"], headers)) is not None:
            await failure(wrong, 415)(scope, receive, send)
            return
        if stated.isdigit() and int(stated) > self._http.max_body_bytes:
            await failure(self._too_large(), 413)(scope, receive, send)
            return
        body, before = bytearray(), self._held
        try:
            try:
                async with asyncio.timeout(self._http.body_seconds):
                    while True:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return
                        part = message.get("body", b"")
                        body += part
                        self._held += len(part)
                        if len(body) > self._http.max_body_bytes:
                            await failure(self._too_large(), 413)(scope, receive, send)
                            return
                        if self._held > self._http.max_held_bytes and before:
                            await failure(_full())(scope, receive, send)
                            return
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                slow = InvalidInput(
                    f"the body did not arrive within {self._http.body_seconds:g} s (http.body_seconds)",
                    reason="BODY_TOO_SLOW",
                )
                await failure(slow, 408)(scope, receive, send)
                return
            if scope["path"] == UPLOAD and body and not _is_image(bytes(body[:16])):
                await failure(_no_image(bytes(body[:16])), 400)(scope, receive, send)
                return
            await self._app(scope, _replayed(bytes(body), receive), self._timely(send))
        finally:
            self._held -= len(body)

    def _timely(self, send: Send) -> Send:
        """Send with a time limit, since a caller may never read."""

        async def timely(message: Message) -> None:
            async with asyncio.timeout(self._http.body_seconds):
                await send(message)

        return timely

    def _too_large(self) -> InvalidInput:
        return InvalidInput(
            f"the body is over the limit of {self._http.max_body_bytes} bytes: send less at once, or upload images by "
            f"{UPLOAD}",
            reason="BODY_TOO_LARGE",
        )


def _full() -> Overloaded:
    return Overloaded("other bodies fill the memory (http.max_held_bytes); try again", retry_after=1)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _wrong_type(path: str, headers: dict[bytes, bytes]) -> InvalidInput | None:
    """Why a body of this Content-Type is refused."""
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    kind = content_type.partition(";")[0].strip().lower()
    if path == UPLOAD:
        if not kind.startswith(("multipart/", "text/")):
            return None
        return InvalidInput(
            f"the Content-Type is {content_type[:100]!r}: send the image file itself as the body, not a form or a page "
            "(curl --data-binary @file)",
            reason="CONTENT_TYPE",
        )
    if path not in _JSON or kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    return InvalidInput(
        f"the Content-Type is {content_type[:100]!r}: send the body as application/json"
        if content_type
        else "there is no Content-Type: send the body as application/json",
        reason="CONTENT_TYPE",
    )


def _is_image(begin: bytes) -> bool:
    avif = begin[4:8] == b"ftyp" and begin[8:12] in (b"avif", b"avis", b"mif1", b"miaf")
    return avif or begin.startswith(_FORMATS) or (begin[:4] == b"RIFF" and begin[8:12] == b"WEBP")


def _no_image(begin: bytes) -> InvalidInput:
    return InvalidInput(
        f"the body is not a JPEG, PNG, WebP, GIF or AVIF file (it begins with {begin[:8].hex(' ')}): send the file "
        "itself, not base64, not a form, not a page",
        reason="IMAGE_UNREADABLE",
    )


def timely_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with a time limit for a request's headers, from the moment when a request could start, so that
    an idle connection ends too."""

    class TimelyProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _look(self) -> None:
            waits = self.cycle is None or self.cycle.response_complete
            if not waits:
                self._stop()
            elif self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(seconds, self._late)

        def _stop(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _late(self) -> None:
            self._header_timer = None
            if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
                self.transport.close()

    return TimelyProtocol
