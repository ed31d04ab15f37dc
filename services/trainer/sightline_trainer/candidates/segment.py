"""`segment`: a good answer with a piece rewritten by the policy, as the rejected side (SAPO, arXiv 2405.20830).

    t drawn evenly from the answer's places, L tokens     y' = y[:t] + policy(. | x, y[:t]) of L tokens + y[t + L:]

SAPO's code: 256 tokens, temperature 0.7, top_k 50, top_p 0.95. The part after the piece is kept, even if the policy
ended its piece early; the end token belongs to the answer and is never cut out. The spliced text is tokenised here as
if the policy had written it, and it has no log-probs.
"""

from __future__ import annotations

import random
from typing import ClassVar, Literal

from pydantic import Field
from sightline.sampler import exact

from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class Segment(CandidatePart):
    """A good answer with a piece rewritten by the policy."""

    writes: ClassVar[tuple[str, ...]] = ("segment",)

    of: Literal["reference", "policy"] = Field(
        "reference", description="Begin with the annotation, or with the policy's first candidate."
    )
    tokens: int = Field(256, ge=1, description="Length of the piece, L (SAPO: 256).")
    temperature: float = Field(0.7, ge=0.0, le=5.0, description="Softmax temperature of the piece (SAPO: 0.7).")
    top_k: int = Field(50, ge=0, description="Likeliest tokens that are kept; 0: all (SAPO: 50).")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="Nucleus mass (SAPO: 0.95).")
    count: int = Field(1, ge=1, le=16, description="Candidates per answer, each with another piece.")

    def open(self, context: SourceContext) -> Source:
        return SegmentSource(self, context)


class SegmentSource:
    """Lets the policy rewrite a piece of each good answer."""

    def __init__(self, settings: Segment, context: SourceContext) -> None:
        self.settings = settings
        self.client = context.sampler
        self.gate = context.gate
        self.seed = context.seed

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        made: list[Response] = []
        for good in self._good(ask):
            for number in range(self.settings.count):
                seed = prompt.seed(self.seed, ask.iteration, -11, number)
                text = await self._spliced(prompt, good, seed, ask.version)
                if text and text != good.text:
                    index = len(ask.made) + len(made)
                    made.append(unsampled(self.gate, prompt, good.prompt, text, index=index, source="segment"))
        return made

    def _good(self, ask: SourceRequest) -> list[Response]:
        """The answers to start from, one for each user's text."""
        first: dict[str, Response] = {}
        for candidate in ask.made:
            if candidate.source == self.settings.of and candidate.fault is None:
                first.setdefault(candidate.prompt, candidate)
        return list(first.values())

    async def _spliced(self, prompt: Prompt, good: Response, seed: int, version: int) -> str:
        settings, end = self.settings, self.gate.template.end
        ids = good.token_ids[:-1] if good.token_ids[-1] == end else good.token_ids
        if not ids:
            return ""
        begin = random.Random(seed).randrange(len(ids))  # noqa: S311 - a draw, no secret
        samples = await self.client.sample(
            prompt.images,
            prompt.asked(good.prompt),
            1,
            seeds=[seed],
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.tokens,
            continue_from=ids[:begin],
            policy=exact(version),
        )
        piece = [int(token) for token in samples.candidates[0].token_ids if int(token) != end]
        return self.gate.template.text([*ids[:begin], *piece, *ids[begin + settings.tokens :]])
