"""WebService: a third-party service over HTTP that answers `POST`s of JSON: a language model, a detector, a painter.

An outage (no connection, 429, 5xx) is waited for, as long as `Retry-After` asks. What the service answers may be
logged and stored, so a key that it repeats is hidden.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator
from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience, Tries

from sightline_trainer.outage import OUTAGE_SECONDS

OF_ONE_ROW = (400, 413, 422)
"""Status codes for a text or picture that is too long or that a filter refuses; others may be answered."""
_LONGEST_WAIT = 300.0
_SHOWN = 300
_MOST_BYTES = 128 << 20
"""Maximum bytes of an answer, decompressed: several large pictures in base64."""


def checked_url(url: str) -> str:
    """The URL, if it can be called.

    Raises:
        ValueError: it has no http:// or https://, no host, an unusable port, or a password, which would be logged.
    """
    from urllib.parse import urlsplit

    shown = url.rpartition("@")[2][:200]
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{shown!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{shown!r} is not a URL: it must look like http://HOST:PORT/PATH or https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"a URL must not contain a name or password (before @ in ...@{shown}): it would be logged")
    return url


Url = Annotated[str, AfterValidator(checked_url)]
"""A setting: an http:// or https:// URL."""


def key_header(key: str, variable: str) -> dict[str, str]:
    """The header that shows a key.

    Args:
        variable: the name of its environment variable.

    Raises:
        PreconditionFailed: KEY_UNUSABLE: no header can carry it.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise PreconditionFailed(
            f"{variable} contains a character that no key has, such as a space or an accent; set it again",
            reason="KEY_UNUSABLE",
        )
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class WebAnswer:
    """An answer, and the key that its messages must not show.

    Attributes:
        body: its bytes; if it is not `whole`, it was longer than allowed and this is its beginning.
    """

    status: int
    body: bytes
    key: str
    whole: bool = True

    @property
    def shown(self) -> str:
        """The beginning of the body, for messages."""
        text = self.body.decode(errors="replace")
        return (text.replace(self.key, "***") if self.key else text)[:_SHOWN]

    def json(self) -> Any:
        """The body. Raises ValueError if it is not JSON."""
        import json

        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None


class WebService:
    """Calls a service.

    Args:
        away: reason of the error of an outage.
        key: shown to the service, if not empty.
        variable: the environment variable of the key.
        timeout_seconds: maximum seconds until an answer is complete.

    Raises:
        PreconditionFailed: HTTPX_MISSING; KEY_UNUSABLE; URL_UNUSABLE.
    """

    def __init__(self, url: str, away: str, timeout_seconds: float, *, key: str = "", variable: str = "") -> None:
        try:
            import httpx
        except ImportError:
            raise PreconditionFailed(f"calling {url} needs httpx: pip install httpx", reason="HTTPX_MISSING") from None
        try:
            self.url = checked_url(url)
        except ValueError as error:
            raise PreconditionFailed(str(error), reason="URL_UNUSABLE") from None
        self.away = away
        self.timeout_seconds = timeout_seconds
        self._key = key.strip()
        headers = key_header(self._key, variable) if self._key else {}
        self._outage: tuple[type[Exception], ...] = (httpx.TransportError, httpx.DecodingError, TimeoutError)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_seconds)
        self._patience = Patience(seconds=OUTAGE_SECONDS)

    async def post(self, body: Any) -> WebAnswer:
        """The answer to a body; its status code is neither 429 nor 5xx.

        Raises:
            Unavailable: the outage lasts too long.
        """
        return await Tries(self._patience).acall(lambda _: self._once(body))

    async def _once(self, body: Any) -> WebAnswer:
        try:
            # httpx's own timeout is for each piece of an answer.
            async with (
                asyncio.timeout(self.timeout_seconds),
                self._client.stream("POST", self.url, json=body) as answer,
            ):
                if answer.status_code == 429 or answer.status_code >= 500:
                    asked = _seconds(answer.headers.get("Retry-After", ""))
                    said = f"{self.url} answers {answer.status_code}"
                    raise Unavailable(said, reason=self.away, retry_after=asked)
                found = bytearray()
                async for piece in answer.aiter_bytes():
                    found += piece
                    if len(found) > _MOST_BYTES:
                        break
                whole = len(found) <= _MOST_BYTES
                return WebAnswer(answer.status_code, bytes(found[:_MOST_BYTES]), self._key, whole)
        except self._outage as error:
            late = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
            why = f"no answer within {self.timeout_seconds:g} s" if late else str(error) or type(error).__name__
            raise Unavailable(f"{self.url} cannot be reached: {why}", reason=self.away) from error

    def refused(self, answer: WebAnswer, one: str, reason: str, advice: str = "") -> Exception | None:
        """The error of an answer that is not a whole 200, or None.

        Args:
            one: reason of the error of a single row.
            reason: reason of the error that ends the run.
            advice: what to do about the latter.
        """
        if not answer.whole:
            return InvalidInput(f"{self.url} answers with over {_MOST_BYTES >> 20} MiB", reason=one)
        if answer.status == 200:
            return None
        said = f"{self.url} answers {answer.status}: {answer.shown}"
        if answer.status in OF_ONE_ROW:
            return InvalidInput(said, reason=one)
        return PreconditionFailed(f"{said}; {advice}" if advice else said, reason=reason)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _seconds(retry_after: str) -> float | None:
    """The wait that a header asks for, bounded; None if it is a date or nothing."""
    try:
        seconds = float(retry_after)
    except ValueError:
        return None
    return min(seconds, _LONGEST_WAIT) if math.isfinite(seconds) and seconds > 0 else None
