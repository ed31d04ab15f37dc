"""PolicyCandidates: K samples of the policy for a prompt, from the sampler service."""

from __future__ import annotations

from dataclasses import dataclass

from sightline_sampler.client import AsyncSamplerClient, exact

from sightline_trainer.patience import patiently
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Sampling


@dataclass(frozen=True)
class Candidate:
    """One sampled response.

    ``logprobs`` are the policy's at temperature 1, one for each of ``token_ids``, in nats; ``seed`` gives the same
    candidate again; ``policy_version`` is the version that sampled its tokens.
    """

    prompt_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    seed: int
    policy_version: int
    rendered_prompt: str


class PolicyCandidates:
    """Samples from one version of the policy and no other."""

    def __init__(self, client: AsyncSamplerClient, settings: Sampling, *, seed: int) -> None:
        self.client = client
        self.settings = settings
        self.seed = seed

    async def __call__(
        self, prompt: Prompt, count: int, *, iteration: int, version: int, temperature: float | None = None
    ) -> list[Candidate]:
        """``count`` candidates in index order.

        Raises:
            PreconditionFailed: the sampler does not serve ``version``.
            SightlineError: what else the sampler answers, after waiting for a restart.
        """
        settings = self.settings
        samples = await patiently(
            lambda: self.client.sample(
                prompt.image,
                prompt.prompt,
                count,
                seeds=[prompt.seed(self.seed, iteration, index) for index in range(count)],
                temperature=settings.temperature if temperature is None else temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                policy=exact(version),
                timeout=settings.timeout_seconds,
            )
        )
        return [
            Candidate(
                prompt_id=prompt.id,
                index=candidate.index,
                text=candidate.text,
                token_ids=[int(token) for token in candidate.token_ids],
                logprobs=[float(logprob) for logprob in candidate.logprobs],
                finish_reason=candidate.finish_reason,
                seed=candidate.seed,
                policy_version=candidate.policy_version,
                rendered_prompt=samples.rendered_prompt,
            )
            for candidate in samples.candidates
        ]
