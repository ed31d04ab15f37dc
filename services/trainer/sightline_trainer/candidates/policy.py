"""`policy`: K samples from the policy for a prompt, by the sampler service."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.decoding_settings import Decoding
from sightline_trainer.policy_candidates import PolicyCandidates
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class PolicySamples(CandidatePart):
    """K samples (sampling.candidates) of the policy for each prompt."""

    writes: ClassVar[tuple[str, ...]] = ("policy",)

    paraphrases: list[str] = Field(
        default_factory=list, description="Equivalent prompts; empty: the dataset's own prompt."
    )
    per_image: int = Field(
        1, ge=1, description="Number of paraphrases drawn for each image (seeded); each gets K candidates."
    )
    temperature: float | None = Field(None, ge=0.0, le=5.0, description="Null: sampling.temperature.")
    count: int | None = Field(
        None, ge=1, le=256, description="Number of candidates per text; null: sampling.candidates."
    )
    decoding: Decoding = Field(
        default_factory=Decoding, description="Guidance, beams, top_k and a distorted image for these candidates."
    )

    def open(self, context: SourceContext) -> Source:
        return PolicySource(self, context)


class PolicySource:
    """Asks the policy, with some of the paraphrases if there are any."""

    def __init__(self, settings: PolicySamples, context: SourceContext) -> None:
        self.settings = settings
        self.count = settings.count or context.sampling.candidates
        self.seed = context.seed
        decoder = None if settings.decoding.plain else context.decoder(settings.decoding, context.seed)
        self.sample = PolicyCandidates(context.sampler, context.sampling, seed=context.seed, decoder=decoder)

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        made: list[Response] = []
        for text in self._texts(prompt, ask.iteration):
            made += await self.sample(
                prompt,
                self.count,
                iteration=ask.iteration,
                version=ask.version,
                temperature=self.settings.temperature,
                text=text,
                first=len(ask.made) + len(made),
            )
        return made

    def _texts(self, prompt: Prompt, iteration: int) -> list[str]:
        if not self.settings.paraphrases:
            return [prompt.prompt]
        count = min(self.settings.per_image, len(self.settings.paraphrases))
        drawn = random.Random(prompt.seed(self.seed, iteration, -1))  # noqa: S311 - a draw, no secret
        return drawn.sample(self.settings.paraphrases, count)
