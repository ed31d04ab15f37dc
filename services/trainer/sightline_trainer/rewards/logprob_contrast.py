"""`logprob_contrast`: how much likelier a text is under one condition than another, by the policy's log-probs.

    s = sum or mean over tokens of log p(token | A) - log p(token | B)

A is the policy with the prompt; B differs in version, picture, prompt, or several of these:

    SPA (arXiv 2406.04412)      B is the base model: beta times s is DPO's implicit reward
    ICDPO (arXiv 2402.09320)    A has demonstrations in its prompt, B has none
    sight                       B sees an empty picture: how much a text depends on the picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator
from sightline.pictures import Picture, write_png
from sightline.sampler import AsyncSamplerClient, Turn, exact
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term, TermContext, TermPart

_GREY = 127


class LogprobContrast(TermPart):
    """Log-probs under the policy, minus those under another version, picture or prompt."""

    prompt: str = Field("{prompt}", description="Prompt for A; {prompt} is the candidate's own prompt.")
    against: Literal["base", "policy"] = Field("base", description="Version of B: the base model, or the same as A's.")
    against_image: Literal["shown", "grey"] = Field("shown", description="What B sees: the picture, or one grey one.")
    against_prompt: str = Field("{prompt}", description="Prompt for B.")
    pool: Literal["sum", "mean"] = Field(
        "sum", description="How tokens are combined; a sum grows with length, as in DPO."
    )
    scale: float = Field(1.0, gt=0.0, description="Factor, such as beta; rewards have two decimals.")

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if self.against == "policy" and self.against_image == "shown" and self.prompt == self.against_prompt:
            raise ValueError("A and B are the same; let against, against_image or a prompt differ")
        for key, template in (("prompt", self.prompt), ("against_prompt", self.against_prompt)):
            if "{prompt}" not in template:
                raise ValueError(f"{key} lacks {{prompt}}, where the question goes")
        return self

    def open(self, context: TermContext) -> Term:
        return LogprobContrastTerm(self, context.sampler)


class LogprobContrastTerm:
    """Asks the sampler for both, of each text."""

    def __init__(self, settings: LogprobContrast, client: AsyncSamplerClient) -> None:
        self.settings = settings
        self.client = client

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        settings = self.settings
        other = 0 if settings.against == "base" else version
        grey = [_grey(image.read_bytes()) for image in prompt.images] if settings.against_image == "grey" else []
        scores = []
        for each in candidates:
            if not each.token_ids:
                scores.append(Score(None, error="EMPTY_TEXT"))
                continue
            asked = each.prompt or prompt.prompt
            texts = [template.replace("{prompt}", asked) for template in (settings.prompt, settings.against_prompt)]
            known = each.logprobs if each.source == "policy" and texts[0] == asked and not each.images else []
            one = known or await self._logprobs(prompt.images, prompt.asked(texts[0]), each, version)
            if other == version and not grey and texts[0] == texts[1]:  # the first iteration's policy is the base model
                two = one
            else:
                two = await self._logprobs(grey or prompt.images, prompt.asked(texts[1]), each, other)
            apart = np.asarray(one, dtype=np.float64) - np.asarray(two, dtype=np.float64)
            value = apart.sum() if settings.pool == "sum" else apart.mean()
            # The last bits depend on the rest of a batch; the choice of pairs must not.
            scores.append(Score(round(settings.scale * float(value), 2)))
        return scores

    async def _logprobs(
        self, images: Sequence[Picture], asked: Sequence[Turn], response: Response, version: int
    ) -> Sequence[float]:
        found = await self.client.score_tokens(images, asked, response.token_ids, policy=exact(version))
        logprobs: list[float] = found.logprobs.tolist()
        return logprobs


def _grey(image: bytes) -> bytes:
    """One grey picture of the same size."""
    width, height = decode(image, ImageLimits()).size
    return write_png(np.full((height, width, 3), _GREY, dtype=np.uint8))
