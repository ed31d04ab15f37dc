"""PictureEndpoint: `POST {url}/images/generations`, as OpenAI and servers of diffusion models support it.

    {"model", "prompt", "n", "seed", "response_format": "b64_json"}   ->   {"data": [{"b64_json": ...}, ...]}

SIGHTLINE_PICTURES_KEY from the environment is sent only to the address in SIGHTLINE_PICTURES_URL.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience, Tries

from sightline_trainer.outage import OUTAGE_SECONDS
from sightline_trainer.pools.generated import NO_PICTURE

_OF_ONE_TEXT = (400, 413, 422)


class PictureEndpoint:
    """Asks an endpoint for pictures.

    Args:
        size: such as "1024x1024"; empty: the endpoint's default.

    Raises:
        PreconditionFailed: HTTPX_MISSING.
    """

    def __init__(self, url: str, model: str = "", size: str = "", timeout_seconds: float = 300.0) -> None:
        try:
            import httpx
        except ImportError:
            raise PreconditionFailed(
                "an endpoint for pictures needs httpx: pip install httpx", reason="HTTPX_MISSING"
            ) from None
        self.url = f"{url.rstrip('/')}/images/generations"
        self.model, self.size = model, size
        ours, key = os.environ.get("SIGHTLINE_PICTURES_URL", ""), os.environ.get("SIGHTLINE_PICTURES_KEY", "")
        self._away: type[Exception] = httpx.TransportError
        headers = {"Authorization": f"Bearer {key}"} if key and url == ours else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_seconds)
        self._patience = Patience(seconds=OUTAGE_SECONDS)

    async def __call__(self, shows: str, count: int, seed: int) -> list[bytes]:
        body: dict[str, Any] = {"prompt": shows, "n": count, "seed": seed % 2**31, "response_format": "b64_json"}
        body |= {name: value for name, value in (("model", self.model), ("size", self.size)) if value}
        return await Tries(self._patience).acall(lambda _: self._ask(body))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, body: dict[str, Any]) -> list[bytes]:
        try:
            answer = await self._client.post(self.url, json=body)
        except self._away as error:
            raise Unavailable(
                f"{self.url} cannot be reached: {error}; check the URL and the server", reason="PICTURES_AWAY"
            ) from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(f"{self.url} answers {answer.status_code}", reason="PICTURES_AWAY")
        if answer.status_code in _OF_ONE_TEXT:
            raise InvalidInput(f"{self.url} answers {answer.status_code}: {answer.text[:300]}", reason=NO_PICTURE)
        if answer.status_code != 200:
            raise PreconditionFailed(
                f"{self.url} answers {answer.status_code}: {answer.text[:300]}; check the URL, the model's name "
                "and the key",
                reason="PICTURES_REFUSED",
            )
        try:
            return [base64.b64decode(each["b64_json"], validate=True) for each in answer.json()["data"]]
        except (ValueError, LookupError, TypeError, binascii.Error):
            raise InvalidInput(f"{self.url} returned no pictures: {answer.text[:100]}", reason=NO_PICTURE) from None
