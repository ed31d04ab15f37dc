"""Language models as writers: a text LLM behind a sampler of ours, or any OpenAI-compatible endpoint.

The instructions are our own; BPO's released ones ask for the same thing in other words and with examples.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sightline_chassis.errors import PreconditionFailed, Unavailable
from sightline_sampler.client import AsyncSamplerClient

from sightline_trainer.injection.kinds import WORDS
from sightline_trainer.patience import patiently
from sightline_trainer.prompts import Prompt

if TYPE_CHECKING:
    from sightline_trainer.candidates.injected import Injected


def instruction(settings: Injected, asked: str, text: str) -> str:
    """What the language model is told."""
    errors = "; ".join(WORDS[kind] for kind in settings.kinds)
    number = "one mistake" if settings.errors == 1 else f"{settings.errors} mistakes"
    return (
        "An answer about a picture is given below. Write it again as somebody would who looked at the picture "
        f"carelessly: with {number} that nobody could tell without seeing the picture. Allowed mistakes: {errors}. "
        "Everything else, the style and the length stay as they are. Write the new answer alone, with no remark.\n\n"
        f"Question: {asked}\nAnswer: {text}\nNew answer:"
    )


def cleaned(text: str) -> str | None:
    """The answer without the quotation marks and the label that models like to add; None where nothing is left."""
    text = text.strip().removeprefix("New answer:").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    return text or None


class SamplerWriter:
    """A text LLM behind a sampler: a prompt without an image."""

    def __init__(self, settings: Injected) -> None:
        self.settings = settings
        self._client: AsyncSamplerClient | None = None

    async def __call__(self, prompt: Prompt, asked: str, text: str, seed: int) -> str | None:
        if self._client is None:  # inside the running event loop
            self._client = AsyncSamplerClient(self.settings.address or "")
        client, settings = self._client, self.settings
        samples = await patiently(
            lambda: client.sample(
                None,
                instruction(settings, asked, text),
                1,
                seeds=[seed],
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                timeout=settings.timeout_seconds,
            )
        )
        return cleaned(samples.candidates[0].text)


class OpenAiWriter:
    """``POST {url}/chat/completions``, as OpenAI, vLLM, TGI, llama.cpp and others answer it.

    Raises:
        PreconditionFailed: httpx is not installed, or the variable with the key is not set.
    """

    def __init__(self, settings: Injected) -> None:
        self.settings = settings
        self._client: Any = None
        try:
            import httpx
        except ImportError:
            raise PreconditionFailed(
                "candidates.injected.writer=openai needs httpx: pip install httpx", reason="HTTPX_MISSING"
            ) from None
        self._httpx = httpx
        self._headers = {}
        if settings.key_variable is not None:
            key = os.environ.get(settings.key_variable)
            if not key:
                raise PreconditionFailed(
                    f"the environment has no {settings.key_variable}, which should hold the key of {settings.url}",
                    reason="KEY_MISSING",
                )
            self._headers = {"Authorization": f"Bearer {key}"}

    async def __call__(self, prompt: Prompt, asked: str, text: str, seed: int) -> str | None:
        settings = self.settings
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": instruction(settings, asked, text)}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": seed % 2**31,
        }
        return cleaned(await patiently(lambda: self._ask(body)))

    async def _ask(self, body: dict[str, Any]) -> str:
        if self._client is None:  # inside the running event loop
            self._client = self._httpx.AsyncClient(headers=self._headers, timeout=self.settings.timeout_seconds)
        url = f"{(self.settings.url or '').rstrip('/')}/chat/completions"
        try:
            answer = await self._client.post(url, json=body)
        except self._httpx.TransportError as error:
            raise Unavailable(f"{url} is away: {error}", reason="LLM_AWAY") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(f"{url} answers {answer.status_code}", reason="LLM_AWAY")
        if answer.status_code != 200:
            raise PreconditionFailed(f"{url} answers {answer.status_code}: {answer.text[:300]}", reason="LLM_REFUSES")
        return str(answer.json()["choices"][0]["message"]["content"] or "")
