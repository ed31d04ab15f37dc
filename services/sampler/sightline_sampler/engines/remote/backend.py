"""An engine behind HTTP: connections, limits, and the meaning of its failures."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline_chassis import metrics, traces

from sightline_sampler.engine_settings import HttpEngineSettings

Kind = Literal["busy", "away", "broken"]


class Failure(Unavailable):
    """A request that the engine did not complete, but may complete later.

    Attributes:
        kind: "busy" (it has too much work), "away" (it does not answer, or is starting), "broken" (it accepted the
            request and failed).
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


class Backend:
    """HTTP to one engine.

    Args:
        name: name for metrics and messages.
        settings: its address, and limits.
        called: name in metrics and messages, if there are several engines with the same `name`.
        transport: replaces the network, for tests.
    """

    def __init__(
        self,
        name: str,
        settings: HttpEngineSettings,
        *,
        called: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name, self._called, self._settings = name, called or name, settings
        headers = {"authorization": f"Bearer {settings.token}"} if settings.token else {}
        self._client = httpx.AsyncClient(
            base_url=settings.url,
            headers=headers,
            transport=transport,
            trust_env=False,  # a proxy from the environment is not for a nearby engine
            timeout=httpx.Timeout(settings.read_seconds, connect=settings.connect_seconds, pool=None),
            limits=httpx.Limits(max_connections=settings.max_concurrent + 8, max_keepalive_connections=None),
        )
        metrics.BACKEND_UP.labels(self._called).set(0)
        metrics.BACKEND_RETRIES.labels(self._called)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def get(self, path: str) -> httpx.Response:
        """GET; any status below 500 and not 429 is a reply.

        Raises:
            Failure: it did not answer, or not now.
        """
        with self._measured("GET", path) as headers:
            response = await self._client.get(path, headers=headers, timeout=self._settings.connect_seconds + 5)
            _refuse_failed(response)
            return response

    async def post(
        self, path: str, body: object = None, *, seconds: float | None = None, query: dict[str, str] | None = None
    ) -> httpx.Response:
        """POST of JSON; any status below 424 is a reply.

        Args:
            path: under the engine's address.
            body: JSON values; None: no body.
            seconds: maximum silence, if not the settings'.
            query: the URL's query.

        Raises:
            InvalidInput: the body is larger than the engine accepts.
            Failure: it did not answer, or not now.
        """
        timeout = self._client.timeout if seconds is None else httpx.Timeout(seconds, pool=None)
        content, headers = self._encode(body)
        with self._measured("POST", path) as traced:
            headers |= traced
            response = await self._client.post(path, content=content, headers=headers, timeout=timeout, params=query)
            _refuse_failed(response)
            return response

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: object) -> AsyncIterator[httpx.Response]:
        """POST of JSON with a streamed reply; raises as `post`, also while reading it."""
        content, headers = self._encode(body)
        with self._measured("POST", path) as traced:
            async with self._client.stream("POST", path, content=content, headers=headers | traced) as response:
                if response.status_code != 200:
                    await response.aread()
                    _refuse_failed(response)
                yield response

    def _encode(self, body: object) -> tuple[bytes, dict[str, str]]:
        if body is None:
            return b"", {}
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        most = self._settings.max_body_bytes
        if len(content) > most:
            raise InvalidInput(
                f"the request to {self.name} would have {len(content)} bytes, over its limit of {most}: send a smaller "
                f"image (base64 makes it a third larger; engine.{self.name}.max_body_bytes)",
                reason="IMAGE_TOO_LARGE",
                metadata={"limit_bytes": str(most)},
            )
        return content, {"content-type": "application/json"}

    @contextlib.contextmanager
    def _measured(self, method: str, path: str) -> Iterator[dict[str, str]]:
        """A request, counted and traced; yields the headers with which the engine continues the caller's trace."""
        started, outcome = time.monotonic(), "cancelled"
        facts = {"http.request.method": method, "url.path": path, "sightline.engine": self._called}
        try:
            with traces.calling(f"{method} {path}", **facts) as headers:
                yield headers
            outcome = "ok"
        except Failure as failure:
            outcome = failure.kind
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            outcome = "away"
            raise Failure("away", f"{self._called} does not answer: {error or type(error).__name__}") from error
        except httpx.TimeoutException as error:
            outcome = "broken"
            raise Failure("broken", f"{self._called} sent nothing for too long ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            outcome = "broken"
            raise Failure("broken", f"{self._called} ended the connection: {error or type(error).__name__}") from error
        finally:
            metrics.BACKEND_SECONDS.labels(self._called, outcome).observe(time.monotonic() - started)


def reason_of(response: httpx.Response) -> str:
    """The error in a reply: TGI's `error`, vLLM's `error.message`, FastAPI's `detail`, or plain text."""
    with contextlib.suppress(ValueError):
        tree: Any = response.json()
        if isinstance(tree, dict):
            error = tree.get("error", tree.get("detail", tree.get("message")))
            if isinstance(error, dict):
                error = error.get("message")
            if error:
                return str(error)[:500]
    return response.text[:500] or f"HTTP {response.status_code}"


def refused(name: str, response: httpx.Response) -> InvalidInput | PreconditionFailed:
    """The error for a reply that a retry would not change."""
    why, status = reason_of(response), response.status_code
    if status in (401, 403):
        return PreconditionFailed(
            f"{name} refuses the sampler's own access ({status}: {why}): check engine.{name}.token",
            reason="ENGINE_REFUSES",
        )
    if status == 413 or "length limit exceeded" in why:
        return InvalidInput(
            f"the request is larger than {name} accepts: {why}; send a smaller image, and set "
            f"engine.{name}.max_body_bytes to its limit",
            reason="IMAGE_TOO_LARGE",
        )
    return InvalidInput(f"{name} refuses the request ({status}): {why}", reason="ENGINE_REFUSES")


def _refuse_failed(response: httpx.Response) -> None:
    status = response.status_code
    if status == 429:
        raise Failure("busy", reason_of(response))
    if status == 503 or status == 502:
        raise Failure("away", reason_of(response))
    if status == 424 or status >= 500:
        raise Failure("broken", reason_of(response))
