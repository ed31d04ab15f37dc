"""Teacher forcing on vLLM: prompt_logprobs of a chat whose last message is the response."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from cachetools import LRUCache
from sightline.errors import InternalError, InvalidInput
from sightline.sampler.types import Logprobs

from sightline_sampler.engines.base import UNSCORABLE
from sightline_sampler.engines.remote.backend import Backend, refused
from sightline_sampler.engines.remote.chattext import ChatText

_KEPT = 256


class VllmScorer:
    """Scores given token ids.

    The chat route takes text, and a template may render an answer differently from the prompt for one (an extra space).
    So the prompt's own ids are requested once, and the scored ids must be exactly those followed by the response's.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._prompts: LRUCache[bytes, list[int]] = LRUCache(_KEPT)

    async def score(
        self, messages: list[dict[str, Any]], ids: list[int], body: dict[str, Any], text: ChatText
    ) -> Logprobs:
        """Log-probability of each id (n,) after the prompt.

        Raises:
            InvalidInput: no text gives these ids.
            Failure: the server did not answer.
        """
        prompt = await self._prompt_ids(messages, body)
        plain = text.decode(ids, special=True)
        tried: set[str] = set()
        for content in (plain, plain.removeprefix(" "), f" {plain}"):
            if content in tried or not content:
                continue
            tried.add(content)
            tree = await self._ask(
                [*messages, {"role": "assistant", "content": content}],
                body | {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0},
            )
            if tree["prompt_token_ids"] == prompt + ids:
                found = tree["prompt_logprobs"][-len(ids) :]
                return np.array(
                    [entry[str(token)]["logprob"] for entry, token in zip(found, ids, strict=True)], np.float32
                )
        raise InvalidInput(
            "vLLM's chat route takes text, and the text of these token ids gives other ids after this prompt",
            reason=UNSCORABLE,
        )

    async def _prompt_ids(self, messages: list[dict[str, Any]], body: dict[str, Any]) -> list[int]:
        key = hashlib.sha256(json.dumps(messages).encode()).digest()
        if key not in self._prompts:
            self._prompts[key] = (await self._ask(messages, body))["prompt_token_ids"]
        return self._prompts[key]

    async def _ask(self, messages: list[dict[str, Any]], body: dict[str, Any]) -> dict[str, Any]:
        asked = {**body, "messages": messages, "max_tokens": 1, "temperature": 0.0, "return_token_ids": True}
        response = await self._backend.post("/v1/chat/completions", asked)
        if response.status_code != 200:
            raise refused("vllm", response)
        tree: dict[str, Any] = response.json()
        if tree.get("model") != body["model"]:
            raise InternalError(f"vLLM answered as {tree.get('model')}, not as {body['model']}", reason="ENGINE_FAILED")
        if tree.get("prompt_token_ids") is None:
            raise InternalError(
                "this vLLM does not return token ids (return_token_ids): use a newer version", reason="ENGINE_FAILED"
            )
        return tree
