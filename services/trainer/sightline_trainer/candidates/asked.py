"""`asked`: a text that a language model writes on request, such as an improved answer (SENA) or a caption with facts.

The template may name {question}, {answer} (the policy's first candidate), {caption} (the policy's answer to `caption`),
{objects} and {reference} (from the dataset). The result is a candidate for the same question.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

from pydantic import Field, model_validator

from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.injection.language_model import cleaned
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.speaker.settings import Speaking
from sightline_trainer.speaker.speaker import Speaker
from sightline_trainer.speaker.template import check_template, filled

FIELDS: Final = ("question", "answer", "caption", "objects", "reference")


class Asked(CandidatePart, Speaking):
    """A text written on request by the policy, another sampler or an endpoint."""

    writes: ClassVar[tuple[str, ...]] = ("asked",)

    template: str = Field(
        description="Template of the question: {question}, {answer}, {caption}, {objects}, {reference}."
    )
    caption: str = Field(
        "Describe the picture.",
        description="Prompt for {caption}, answered greedily by the policy, if the template uses it.",
    )
    count: int = Field(1, ge=1, le=16, description="Number of texts per answer.")

    @model_validator(mode="after")
    def _askable(self) -> Self:
        check_template(self.template, FIELDS)
        return self

    def open(self, context: SourceContext) -> Source:
        policy = context.speaker(Speaking(max_tokens=context.sampling.max_tokens))
        return AskedSource(self, context, context.speaker(self), policy)


class AskedSource:
    """Asks once for every user's text that the policy answered, or for the prompt's own."""

    def __init__(self, settings: Asked, context: SourceContext, speaker: Speaker, policy: Speaker) -> None:
        self.settings = settings
        self.gate = context.gate
        self.seed = context.seed
        self.speaker = speaker
        self.policy = policy

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        settings = self.settings
        first: dict[str, str] = {}
        for candidate in ask.made:
            if candidate.source == "policy" and candidate.fault is None:
                first.setdefault(candidate.prompt, candidate.text)
        known = {"objects": ", ".join(prompt.objects), "reference": prompt.reference}
        if "{caption}" in settings.template:
            seed = prompt.seed(self.seed, ask.iteration, -8)
            known["caption"] = await self.policy(prompt, settings.caption, seed, version=ask.version)
        made: list[Response] = []
        for question, answer in (first or {prompt.prompt: ""}).items():
            asked = filled(settings.template, {**known, "question": question, "answer": answer})
            for number in range(settings.count):
                seed = prompt.seed(self.seed, ask.iteration, -9, len(made), number)
                text = cleaned(await self.speaker(prompt, asked, seed, version=ask.version))
                if text is not None:
                    index = len(ask.made) + len(made)
                    made.append(unsampled(self.gate, prompt, question, text, index=index, source="asked"))
        return made
