"""``policy``: K samples of the policy for a prompt, from the sampler service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field
from sightline_sampler.client import AsyncSamplerClient, exact

from sightline_trainer.candidates.candidate import Candidate
from sightline_trainer.candidates.source import Ask, CandidatePart, Context, Source
from sightline_trainer.patience import patiently
from sightline_trainer.prompts import Prompt

if TYPE_CHECKING:
    from sightline_trainer.recipe import Sampling


class Policy(CandidatePart):
    """K samples (sampling.candidates) of the policy for each prompt."""

    paraphrases: list[str] = Field(
        default_factory=list, description="Prompts that mean the same; empty: the dataset's prompt as it stands."
    )
    per_image: int = Field(
        1, ge=1, description="How many of the paraphrases an image is asked with, K candidates each, drawn by its seed."
    )
    temperature: float | None = Field(None, ge=0.0, le=5.0, description="Null: sampling.temperature.")

    def open(self, context: Context) -> Source:
        return PolicySource(self, context)


class PolicyCandidates:
    """Samples from one version of the policy and no other."""

    def __init__(self, client: AsyncSamplerClient, settings: Sampling, *, seed: int) -> None:
        self.client = client
        self.settings = settings
        self.seed = seed

    async def __call__(
        self,
        prompt: Prompt,
        count: int,
        *,
        iteration: int,
        version: int,
        temperature: float | None = None,
        text: str | None = None,
        first: int = 0,
        source: str = "policy",
        image: bytes = b"",
        **options: Any,
    ) -> list[Candidate]:
        """``count`` candidates in index order.

        Args:
            text: asked in place of the prompt's own.
            first: number of the first candidate; seeds depend on it.
            source: the part that asks.
            image: shown in place of the prompt's own.
            options: further `SampleOptions`, such as ``distortion``.

        Raises:
            PreconditionFailed: the sampler does not serve ``version``.
            SightlineError: what else the sampler answers, after waiting for a restart.
        """
        settings, asked = self.settings, prompt.prompt if text is None else text
        samples = await patiently(
            lambda: self.client.sample(
                image or prompt.image,
                asked,
                count,
                seeds=[prompt.seed(self.seed, iteration, first + index) for index in range(count)],
                temperature=settings.temperature if temperature is None else temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                policy=exact(version),
                timeout=settings.timeout_seconds,
                **options,
            )
        )
        return [
            Candidate(
                prompt_id=prompt.id,
                index=first + candidate.index,
                text=candidate.text,
                token_ids=[int(token) for token in candidate.token_ids],
                logprobs=[float(logprob) for logprob in candidate.logprobs],
                finish_reason=candidate.finish_reason,
                seed=candidate.seed,
                policy_version=candidate.policy_version,
                rendered_prompt=samples.rendered_prompt,
                prompt=asked,
                source=source,
                image=image,
            )
            for candidate in samples.candidates
        ]


class PolicySource:
    """Asks the policy; where there are paraphrases, with some of them."""

    def __init__(self, settings: Policy, context: Context) -> None:
        recipe = context.recipe
        self.settings = settings
        self.count = recipe.sampling.candidates
        self.seed = recipe.seed
        self.sample = PolicyCandidates(context.sampler, recipe.sampling, seed=recipe.seed)

    async def __call__(self, prompt: Prompt, ask: Ask) -> list[Candidate]:
        made: list[Candidate] = []
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
        import random

        if not self.settings.paraphrases:
            return [prompt.prompt]
        count = min(self.settings.per_image, len(self.settings.paraphrases))
        drawn = random.Random(prompt.seed(self.seed, iteration, -1))  # noqa: S311 - a draw, no secret
        return drawn.sample(self.settings.paraphrases, count)
