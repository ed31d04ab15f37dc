"""`models`: candidates from other models, each behind its own sampler (VLFeedback's pool of LVLMs, PDS-DPO's three).

Their texts are tokenised as if the policy had written them. Their own log-probs are not the policy's and are not kept.
All have the source `models`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from sightline.errors import InvalidInput
from sightline.sampler import AsyncSamplerClient
from sightline_chassis.settings import Target

from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.sections import Sampling


class OtherModels(CandidatePart):
    """Samples from other models, each from its own sampler."""

    writes: ClassVar[tuple[str, ...]] = ("models",)

    addresses: dict[str, Target] = Field(min_length=1, description="gRPC targets of their samplers, by name.")
    count: int = Field(1, ge=1, le=64, description="Number of candidates per model.")
    temperature: float | None = Field(None, ge=0.0, le=5.0, description="Null: sampling.temperature.")

    def open(self, context: SourceContext) -> Source:
        clients = {
            name: context.connect(address, context.sampling.timeout_seconds) for name, address in self.addresses.items()
        }
        return ModelsSource(self, context, clients)


class ModelsSource:
    """Asks each model every user's text that was asked so far."""

    def __init__(self, settings: OtherModels, context: SourceContext, clients: dict[str, AsyncSamplerClient]) -> None:
        self.settings = settings
        self.sampling: Sampling = context.sampling
        self.gate = context.gate
        self.seed = context.seed
        self.clients = clients

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        made: list[Response] = []
        for asked in list(dict.fromkeys(candidate.prompt for candidate in ask.made)) or [prompt.prompt]:
            for place, client in enumerate(self.clients.values()):
                for text in await self._texts(client, prompt, asked, ask.iteration, place):
                    index = len(ask.made) + len(made)
                    made.append(unsampled(self.gate, prompt, asked, text, index=index, source="models"))
        return made

    async def _texts(
        self, client: AsyncSamplerClient, prompt: Prompt, asked: str, iteration: int, place: int
    ) -> list[str]:
        settings, sampling = self.settings, self.sampling
        try:
            samples = await client.sample(
                prompt.images,
                prompt.asked(asked),
                settings.count,
                seeds=[prompt.seed(self.seed, iteration, -10, place, number) for number in range(settings.count)],
                temperature=sampling.temperature if settings.temperature is None else settings.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
            )
        except InvalidInput:  # another model may refuse what ours accepts
            return []
        return [
            each.text.strip() for each in samples.candidates if each.finish_reason != "length" and each.text.strip()
        ]
