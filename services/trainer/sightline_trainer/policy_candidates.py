"""Samples from one version of the policy, by the sampler service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.sampler import AsyncSamplerClient, exact

from sightline_trainer.decoder_options import DecoderOptions
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.sections import Sampling


class PolicyCandidates:
    """Samples from exactly one version of the policy."""

    def __init__(
        self, client: AsyncSamplerClient, settings: Sampling, *, seed: int, decoder: DecoderOptions | None = None
    ) -> None:
        self.client = client
        self.settings = settings
        self.seed = seed
        self.decoder = decoder

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
        images: Sequence[bytes] = (),
        **options: Any,
    ) -> list[Response]:
        """`count` candidates in index order.

        Args:
            text: question instead of the prompt's own.
            first: number of the first candidate; seeds depend on it.
            source: the part that asks.
            images: images instead of the prompt's own.
            options: more `SampleOptions`, such as `distortion`.

        Raises:
            PreconditionFailed: the sampler does not serve `version`.
            SightlineError: another error of the sampler, after waiting for a restart.
        """
        settings, asked = self.settings, prompt.prompt if text is None else text
        if self.decoder is not None:
            options = {**await self.decoder(prompt, asked), **options}
        # Log-probs under a distorted image are not those of the image in the update.
        hidden = source == "policy" and "distortion" in options
        samples = await self.client.sample(
            images or prompt.images,
            prompt.asked(asked),
            count,
            seeds=[prompt.seed(self.seed, iteration, first + index) for index in range(count)],
            temperature=settings.temperature if temperature is None else temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            policy=exact(version),
            **options,
        )
        return [
            Response(
                prompt_id=prompt.id,
                index=first + candidate.index,
                text=candidate.text,
                token_ids=[int(token) for token in candidate.token_ids],
                logprobs=[] if hidden else [float(logprob) for logprob in candidate.logprobs],
                finish_reason=candidate.finish_reason,
                seed=candidate.seed,
                policy_version=candidate.policy_version,
                rendered_prompt=samples.rendered_prompt,
                prompt=asked,
                source=source,
                images=list(images),
            )
            for candidate in samples.candidates
        ]

    async def logprobs(self, prompt: Prompt, response: Response, *, version: int) -> list[float]:
        """The log-probability of each token of a response under another version, in nats.

        Raises:
            SightlineError: the sampler can't score it, after waiting for a restart.
        """
        scores = await self.client.score_tokens(
            prompt.images, prompt.asked(response.prompt or None), response.token_ids, policy=exact(version)
        )
        return [float(one) for one in scores.logprobs]
