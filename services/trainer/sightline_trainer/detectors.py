"""Detectors: which objects are in a picture, by the scorer over a vocabulary or by a separate service.

    POST {url}   {"image": base64 of a PNG, "labels": [name, ...]}   ->   {"scores": {name: 0..1, ...}}

Pictures are read by the one rule before they are sent. An object is present if it is in one of a prompt's pictures;
without a score, nothing is known about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience, Tries

from sightline_trainer.encoded_picture import png_base64
from sightline_trainer.outage import OUTAGE_SECONDS
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.rewards.clip import ClipScores
from sightline_trainer.rewards.guarded import number
from sightline_trainer.speaker.template import filled

_CHUNK: Final = 32
"""Texts of one request to the scorer."""


class ScorerDetector:
    """The scorer over the vocabulary."""

    def __init__(self, template: str, scores: ClipScores) -> None:
        self.template = template
        self.scores = scores
        self.identity = f"scorer {scores.settings.model or 'default'}: {template}"

    async def __call__(self, prompt: Prompt, objects: Sequence[str]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for at in range(len(prompt.images)):  # present in one of them is enough
            scores = ClipScores(self.scores.client, self.scores.settings, images=at)
            for first in range(0, len(objects), _CHUNK):
                some = objects[first : first + _CHUNK]
                texts = [filled(self.template, {"object": name}) for name in some]
                for name, score in zip(some, await scores(prompt, texts), strict=True):
                    if score.reward is not None:
                        found[name] = max(score.reward, found.get(name, score.reward))
        return found

    async def close(self) -> None:
        """Nothing: the session owns the scorer's client."""


class HttpDetector:
    """A detector behind a URL. Raises PreconditionFailed if httpx is not installed."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        try:
            import httpx
        except ImportError:
            raise PreconditionFailed(
                "a detector over HTTP needs httpx: pip install httpx", reason="HTTPX_MISSING"
            ) from None
        self.url = url
        self.identity = f"detector {self.url}"
        self._away: type[Exception] = httpx.TransportError
        self._client = httpx.AsyncClient(timeout=timeout_seconds)
        self._patience = Patience(seconds=OUTAGE_SECONDS)

    async def __call__(self, prompt: Prompt, objects: Sequence[str]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for image in prompt.images:
            body = {"image": await asyncio.to_thread(png_base64, image), "labels": list(objects)}
            scores = await Tries(self._patience).acall(partial(self._ask, body))
            found |= {name: max(score, found.get(name, score)) for name, score in scores.items()}
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, body: dict[str, Any], _: float) -> Mapping[str, float]:
        try:
            answer = await self._client.post(self.url, json=body)
        except self._away as error:
            raise Unavailable(f"{self.url} cannot be reached: {error}", reason="DETECTOR_AWAY") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(f"{self.url} answers {answer.status_code}", reason="DETECTOR_AWAY")
        if answer.status_code in (400, 413, 422):
            raise InvalidInput(f"{self.url} answers {answer.status_code}", reason="IMAGE_REFUSED_BY_DETECTOR")
        if answer.status_code != 200:
            raise PreconditionFailed(
                f"{self.url} answers {answer.status_code}: {answer.text[:300]}", reason="DETECTOR_REFUSES"
            )
        try:
            scores = answer.json()["scores"]
            marks = {str(name): number(value).reward for name, value in scores.items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InvalidInput(
                f'{self.url} returned no scores: it must answer {{"scores": {{name: 0..1, ...}}}}',
                reason="IMAGE_REFUSED_BY_DETECTOR",
            ) from None
        return {name: mark for name, mark in marks.items() if mark is not None}
