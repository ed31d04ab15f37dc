"""PictureEndpoint: `POST {url}/images/generations`, as OpenAI and servers of diffusion models support it.

    {"model", "prompt", "n", "seed", "response_format": "b64_json"}   ->   {"data": [{"b64_json": ...}, ...]}

SIGHTLINE_PICTURES_KEY from the environment is sent only to the address in SIGHTLINE_PICTURES_URL.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from sightline.errors import InvalidInput

from sightline_trainer.pools.generated import NO_PICTURE
from sightline_trainer.web_service import WebService


class PictureEndpoint:
    """Asks an endpoint for pictures.

    Args:
        size: such as "1024x1024"; empty: the endpoint's default.

    Raises:
        PreconditionFailed: as `WebService`.
    """

    def __init__(self, url: str, model: str = "", size: str = "", timeout_seconds: float = 300.0) -> None:
        self.url = f"{url.rstrip('/')}/images/generations"
        self.model, self.size = model, size
        ours, key = os.environ.get("SIGHTLINE_PICTURES_URL", ""), os.environ.get("SIGHTLINE_PICTURES_KEY", "")
        shown = key if url.rstrip("/") == ours.rstrip("/") else ""
        self._service = WebService(
            self.url, "PICTURES_AWAY", timeout_seconds, key=shown, variable="SIGHTLINE_PICTURES_KEY"
        )

    async def __call__(self, shows: str, count: int, seed: int) -> list[bytes]:
        body: dict[str, Any] = {"prompt": shows, "n": count, "seed": seed % 2**31, "response_format": "b64_json"}
        body |= {name: value for name, value in (("model", self.model), ("size", self.size)) if value}
        answer = await self._service.post(body)
        advice = "check the URL, the model's name and the key"
        if error := self._service.refused(answer, NO_PICTURE, "PICTURES_REFUSED", advice):
            raise error
        try:
            return [base64.b64decode(each["b64_json"], validate=True) for each in answer.json()["data"]]
        except (ValueError, LookupError, TypeError, binascii.Error):
            raise InvalidInput(f"{self.url} returned no pictures: {answer.shown[:100]}", reason=NO_PICTURE) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()
