"""Detectors: which objects are in a picture, by the scorer over a vocabulary or by a separate service.

    POST {url}   {"image": base64 of a PNG, "labels": [name, ...]}   ->   {"scores": {name: 0..1, ...}}

Pictures are read by the one rule before they are sent. An object is present if it is in one of a prompt's pictures;
without a score, nothing is known about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sightline.errors import InvalidInput

from sightline_trainer.encoded_picture import png_base64
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.rewards.clip import ClipScores
from sightline_trainer.rewards.guarded import number
from sightline_trainer.speaker.template import filled
from sightline_trainer.web_service import WebService

_CHUNK: Final = 32
"""Texts of one request to the scorer."""
_REFUSED: Final = "IMAGE_REFUSED_BY_DETECTOR"


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
    """A detector behind a URL. Raises PreconditionFailed as `WebService`."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url = url
        self.identity = f"detector {self.url}"
        self._service = WebService(url, "DETECTOR_AWAY", timeout_seconds)

    async def __call__(self, prompt: Prompt, objects: Sequence[str]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for image in prompt.images:
            body = {"image": await asyncio.to_thread(png_base64, image), "labels": list(objects)}
            scores = await self._ask(body)
            found |= {name: max(score, found.get(name, score)) for name, score in scores.items()}
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()

    async def _ask(self, body: dict[str, Any]) -> Mapping[str, float]:
        answer = await self._service.post(body)
        if error := self._service.refused(answer, _REFUSED, "DETECTOR_REFUSES", "check the url"):
            raise error
        try:
            scores = answer.json()["scores"]
            marks = {str(name): number(value).reward for name, value in scores.items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InvalidInput(
                f'{self.url} returned no scores: it must answer {{"scores": {{name: 0..1, ...}}}}',
                reason=_REFUSED,
            ) from None
        return {name: mark for name, mark in marks.items() if mark is not None}
