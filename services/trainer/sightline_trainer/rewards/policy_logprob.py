"""`policy_logprob`: how likely a text is under the policy, as mean log-prob per token in nats (CSR's self-reward).

CSR's paper multiplies the probabilities of a sentence's tokens; its code uses the length-normalised log-prob, as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sightline.sampler import AsyncSamplerClient, exact

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term, TermContext, TermPart


class PolicyLogprob(TermPart):
    """Mean log-prob per token under the policy."""

    def open(self, context: TermContext) -> Term:
        return PolicyLogprobTerm(context.sampler)


class PolicyLogprobTerm:
    """Sampled texts carry their log-probs; for others, and those sampled under a distorted image, the sampler is
    asked."""

    def __init__(self, client: AsyncSamplerClient) -> None:
        self.client = client

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        return [await self._one(prompt, candidate, version) for candidate in candidates]

    async def _one(self, prompt: Prompt, candidate: Response, version: int) -> Score:
        known: Sequence[float] = candidate.logprobs if candidate.source == "policy" else ()
        if not known and candidate.token_ids:
            asked = prompt.asked(candidate.prompt or None)
            scores = await self.client.score_tokens(prompt.images, asked, candidate.token_ids, policy=exact(version))
            known = scores.logprobs.tolist()
        return Score(fmean(known)) if known else Score(None, error="EMPTY_TEXT")
