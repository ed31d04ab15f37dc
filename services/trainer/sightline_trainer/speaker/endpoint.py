"""Endpoint: `POST {url}/chat/completions` with a picture, as OpenAI, vLLM, TGI, llama.cpp and others support it.

SIGHTLINE_LLM_URL in the environment is the endpoint for recipes without one, SIGHTLINE_LLM_KEY its key. The key is sent
only to that address, not to others that a recipe may name.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience, Tries

from sightline_trainer.encoded_picture import png_base64
from sightline_trainer.outage import OUTAGE_SECONDS
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.speaker.answers import ALTERNATIVES, share_of_yes
from sightline_trainer.speaker.settings import Speaking

_OF_ONE_ROW = (400, 413, 422)
"""Status codes for a text that is too long or that a filter refuses; others may be answered."""


class Endpoint:
    """Asks an endpoint.

    Raises:
        PreconditionFailed: NO_ADDRESS, no endpoint is named; HTTPX_MISSING.
    """

    def __init__(self, settings: Speaking) -> None:
        try:
            import httpx
        except ImportError:
            raise PreconditionFailed(
                "an OpenAI-compatible endpoint needs httpx: pip install httpx", reason="HTTPX_MISSING"
            ) from None
        ours, key = os.environ.get("SIGHTLINE_LLM_URL", ""), os.environ.get("SIGHTLINE_LLM_KEY", "")
        base = settings.url or ours
        if not base:
            raise PreconditionFailed(
                "no language model is configured: give its url, or set SIGHTLINE_LLM_URL in the environment",
                reason="NO_ADDRESS",
            )
        self.settings = settings
        self.url = f"{base.rstrip('/')}/chat/completions"
        self._away: type[Exception] = httpx.TransportError
        headers = {"Authorization": f"Bearer {key}"} if key and base == ours else {}
        self._patience = Patience(seconds=OUTAGE_SECONDS)
        self._client = httpx.AsyncClient(headers=headers, timeout=settings.timeout_seconds)

    def identity(self, version: int) -> str:
        """The model at its address."""
        return f"{self.settings.model} at {self.url}"

    async def __call__(self, prompt: Prompt, question: str, seed: int, *, version: int) -> str:
        choice = await self._choice(prompt, question, seed, {})
        said = choice["message"]["content"]
        return said if isinstance(said, str) else ""

    async def yes(self, prompt: Prompt, question: str, *, version: int) -> float | None:
        more = {"logprobs": True, "top_logprobs": ALTERNATIVES, "max_tokens": 1, "temperature": 0.0}
        return _probability(await self._choice(prompt, question, 0, more))

    async def _choice(self, prompt: Prompt, question: str, seed: int, more: dict[str, Any]) -> Any:
        settings = self.settings
        content: Any = question
        if settings.image:
            shown = await asyncio.to_thread(lambda: [png_base64(image) for image in prompt.images])
            pictures = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}} for png in shown]
            content = [*pictures, {"type": "text", "text": question}]
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": seed % 2**31,
            **more,
        }
        return await Tries(self._patience).acall(lambda _: self._ask(body))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, body: dict[str, Any]) -> Any:
        try:
            answer = await self._client.post(self.url, json=body)
        except self._away as error:
            raise Unavailable(f"{self.url} cannot be reached: {error}", reason="LLM_AWAY") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(f"{self.url} answers {answer.status_code}", reason="LLM_AWAY")
        if answer.status_code in _OF_ONE_ROW:
            raise _unwritten(f"{self.url} answers {answer.status_code}: {answer.text[:300]}")
        if answer.status_code != 200:
            raise PreconditionFailed(
                f"{self.url} answers {answer.status_code}: {answer.text[:300]}", reason="LLM_REFUSES"
            )
        try:
            choice = answer.json()["choices"][0]
            choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _unwritten(f"{self.url} answers without a text: {answer.text[:300]}") from None
        return choice


def _probability(choice: Any) -> float | None:
    """P(yes) over yes and no, from the first token's alternatives; None without them."""
    try:
        told = choice["logprobs"]["content"][0]["top_logprobs"]
        return share_of_yes([(str(each["token"]), float(each["logprob"])) for each in told])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def _unwritten(why: str) -> InvalidInput:
    return InvalidInput(why, reason="CANDIDATE_NOT_WRITTEN")
