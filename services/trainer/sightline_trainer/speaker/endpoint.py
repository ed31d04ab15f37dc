"""Endpoint: `POST {url}/chat/completions` with a picture, as OpenAI, vLLM, TGI, llama.cpp and others support it.

SIGHTLINE_LLM_URL in the environment is the endpoint for recipes without one, SIGHTLINE_LLM_KEY its key. The key is sent
only to that address, not to others that a recipe may name.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from sightline.errors import InvalidInput, PreconditionFailed

from sightline_trainer.encoded_picture import png_base64
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.speaker.answers import ALTERNATIVES, share_of_yes
from sightline_trainer.speaker.settings import Speaking
from sightline_trainer.web_service import WebService

NOT_WRITTEN: Final = "CANDIDATE_NOT_WRITTEN"


class Endpoint:
    """Asks an endpoint.

    Raises:
        PreconditionFailed: NO_ADDRESS, no endpoint is named; or as `WebService`.
    """

    def __init__(self, settings: Speaking) -> None:
        ours, key = os.environ.get("SIGHTLINE_LLM_URL", ""), os.environ.get("SIGHTLINE_LLM_KEY", "")
        base = (settings.url or ours).rstrip("/")
        if not base:
            raise PreconditionFailed(
                "no language model is configured: give its url, or set SIGHTLINE_LLM_URL in the environment",
                reason="NO_ADDRESS",
            )
        self.settings = settings
        self.url = f"{base}/chat/completions"
        shown = key if base == ours.rstrip("/") else ""
        self._service = WebService(
            self.url, "LLM_AWAY", settings.timeout_seconds, key=shown, variable="SIGHTLINE_LLM_KEY"
        )

    def identity(self, version: int) -> str:
        """The model at its address."""
        return f"{self.settings.model} at {self.url}"

    async def __call__(self, prompt: Prompt, question: str, seed: int, *, version: int) -> str:
        choice = await self._choice(prompt, question, seed, {})
        said = choice["message"]["content"]
        if isinstance(said, list):  # parts, as some endpoints answer
            said = "".join(str(part["text"]) for part in said if isinstance(part, dict) and "text" in part)
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
        answer = await self._service.post(body)
        if error := self._service.refused(
            answer, NOT_WRITTEN, "LLM_REFUSES", "check the url, the model's name and SIGHTLINE_LLM_KEY"
        ):
            raise error
        try:
            choice = answer.json()["choices"][0]
            choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise InvalidInput(f"{self.url} answers without a text: {answer.shown}", reason=NOT_WRITTEN) from None
        return choice

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()


def _probability(choice: Any) -> float | None:
    """P(yes) over yes and no, from the first token's alternatives; None without them."""
    try:
        told = choice["logprobs"]["content"][0]["top_logprobs"]
        return share_of_yes([(str(each["token"]), float(each["logprob"])) for each in told])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
