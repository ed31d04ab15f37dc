"""Speaker: asks the policy or another sampler; `endpoint` asks over HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from sightline.sampler import AsyncSamplerClient, Beams, PolicySelector, Turn, exact
from sightline.sampler.turns import user_turn

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate
from sightline_trainer.speaker.answers import ALTERNATIVES, share_of_yes
from sightline_trainer.speaker.settings import Speaking

Connect = Callable[[str, float], AsyncSamplerClient]
"""Opens another sampler; the session closes it."""


class Speaker(Protocol):
    """Asks one question, about a prompt's picture or without a picture."""

    def identity(self, version: int) -> str:
        """Identity of the model that answers, for a store of answers: models that may differ have different ones."""
        ...

    async def __call__(self, prompt: Prompt, question: str, seed: int, *, version: int) -> str:
        """The answer.

        Raises:
            InvalidInput: this question is refused; others may be answered.
            SightlineError: no service answers.
        """
        ...

    async def yes(self, prompt: Prompt, question: str, *, version: int) -> float | None:
        """P(yes) / (P(yes) + P(no)) of the answer's first word; None if it is unknown. Raises as a call."""
        ...


def speaker_of(
    settings: Speaking, policy: AsyncSamplerClient, gate: RowGate, connect: Connect, closing: AsyncExitStack
) -> Speaker:
    """The speaker that the settings name.

    Raises:
        PreconditionFailed: no endpoint is named, or httpx is not installed.
    """
    if settings.who == "openai":
        from sightline_trainer.speaker.endpoint import Endpoint

        endpoint = Endpoint(settings)
        closing.push_async_callback(endpoint.close)
        return endpoint
    if settings.who == "sampler":
        return SamplerSpeaker(settings, connect(settings.address or "", settings.timeout_seconds))
    return SamplerSpeaker(settings, policy, gate)


class SamplerSpeaker:
    """Asks a sampler.

    Args:
        gate: the policy's gate, if the sampler is the run's own: then the version that wrote the candidates answers.
            Another sampler answers from the model that it serves.
    """

    def __init__(self, settings: Speaking, client: AsyncSamplerClient, gate: RowGate | None = None) -> None:
        self.settings = settings
        self.client = client
        self.gate = gate

    def identity(self, version: int) -> str:
        return f"policy v{version}" if self.gate is not None else f"sampler {self.settings.address}"

    def _asked(self, prompt: Prompt, question: str) -> tuple[tuple[Path, ...], tuple[Turn, ...]]:
        """The pictures, and the question after them."""
        shown = prompt.images if self.settings.image else ()
        return shown, user_turn(question, len(shown))

    def _policy(self, version: int) -> PolicySelector | None:
        return exact(version) if self.gate is not None else None

    async def __call__(self, prompt: Prompt, question: str, seed: int, *, version: int) -> str:
        settings = self.settings
        samples = await self.client.sample(
            *self._asked(prompt, question),
            1,
            seeds=[seed],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            policy=self._policy(version),
        )
        return samples.candidates[0].text

    async def yes(self, prompt: Prompt, question: str, *, version: int) -> float | None:
        if self.gate is None:  # its tokenizer is unknown: use the most likely first tokens, as from an endpoint
            likeliest = await self.client.sample(
                *self._asked(prompt, question), ALTERNATIVES, beams=Beams(1, 0.0), max_tokens=1
            )
            return share_of_yes([(each.text, float(each.logprobs[0])) for each in likeliest.candidates])
        mass = []
        for word in ("yes", "no"):
            ids = self.gate.template.response(self._asked(prompt, question)[1], word)[:1]
            scores = await self.client.score_tokens(*self._asked(prompt, question), ids, policy=self._policy(version))
            mass.append(math.exp(float(scores.logprobs[0])))
        total = sum(mass)
        return mass[0] / total if total > 0 and math.isfinite(total) else None
