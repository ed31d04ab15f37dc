"""Language models as writers: a text LLM behind a sampler of ours, or any OpenAI-compatible endpoint.

The instructions are our own; BPO's released ones ask for the same thing in other words and with examples.
"""

from __future__ import annotations

import os
from typing import Any

from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience, Tries
from sightline.sampler import AsyncSamplerClient

from sightline_trainer.injection.kinds import WORDS
from sightline_trainer.injection.settings import Rewriting
from sightline_trainer.outage import OUTAGE_SECONDS
from sightline_trainer.records.prompt import Prompt


def instruction(settings: Rewriting, asked: str, text: str) -> str:
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


_OF_ONE_ROW = (400, 413, 422)
"""What endpoints answer to a text that is too long or that a filter refuses: the next one may well be written."""


class SamplerWriter:
    """A text LLM behind a sampler: a prompt without an image."""

    def __init__(self, settings: Rewriting, client: AsyncSamplerClient) -> None:
        self.settings = settings
        self.client = client

    async def __call__(self, prompt: Prompt, asked: str, text: str, seed: int) -> str | None:
        settings = self.settings
        samples = await self.client.sample(
            None,
            instruction(settings, asked, text),
            1,
            seeds=[seed],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        )
        return cleaned(samples.candidates[0].text)


class OpenAiWriter:
    """`POST {url}/chat/completions`, as OpenAI, vLLM, TGI, llama.cpp and others answer it.

    The environment's SIGHTLINE_LLM_URL names the endpoint of recipes that name none, SIGHTLINE_LLM_KEY its key. The key
    goes to that address and to no other that a recipe may name.

    Raises:
        PreconditionFailed: no endpoint is named, or httpx is not installed.
    """

    def __init__(self, settings: Rewriting) -> None:
        try:
            import httpx
        except ImportError:
            raise PreconditionFailed(
                "candidates.injected.writer=openai needs httpx: pip install httpx", reason="HTTPX_MISSING"
            ) from None
        ours, key = os.environ.get("SIGHTLINE_LLM_URL", ""), os.environ.get("SIGHTLINE_LLM_KEY", "")
        base = settings.url or ours
        if not base:
            raise PreconditionFailed(
                "no language model is named: set candidates.injected.url, or SIGHTLINE_LLM_URL in the environment",
                reason="NO_ADDRESS",
            )
        self.settings = settings
        self.url = f"{base.rstrip('/')}/chat/completions"
        self._away: type[Exception] = httpx.TransportError
        headers = {"Authorization": f"Bearer {key}"} if key and base == ours else {}
        self._patience = Patience(seconds=OUTAGE_SECONDS)
        self._client = httpx.AsyncClient(headers=headers, timeout=settings.timeout_seconds)

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
        return cleaned(await Tries(self._patience).acall(lambda _: self._ask(body)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, body: dict[str, Any]) -> str:
        try:
            answer = await self._client.post(self.url, json=body)
        except self._away as error:
            raise Unavailable(f"{self.url} is away: {error}", reason="LLM_AWAY") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(f"{self.url} answers {answer.status_code}", reason="LLM_AWAY")
        if answer.status_code in _OF_ONE_ROW:
            raise _unwritten(f"{self.url} answers {answer.status_code}: {answer.text[:300]}")
        if answer.status_code != 200:
            raise PreconditionFailed(
                f"{self.url} answers {answer.status_code}: {answer.text[:300]}", reason="LLM_REFUSES"
            )
        try:
            said = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _unwritten(f"{self.url} answers without a text: {answer.text[:300]}") from None
        return said if isinstance(said, str) else ""


def _unwritten(why: str) -> InvalidInput:
    return InvalidInput(why, reason="CANDIDATE_NOT_WRITTEN")
