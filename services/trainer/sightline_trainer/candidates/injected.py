"""`injected`: a good answer rewritten with plausible errors, as the rejected one.

POVID uses GPT-4V for this, BPO a text LLM. Who rewrites: `rules` (swaps words of the dataset's vocabulary.json),
`sampler` (a text LLM behind our sampler) or `openai` (any OpenAI-compatible endpoint).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.injection.settings import Rewriting
from sightline_trainer.injection.writer import Writer
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class Injected(Rewriting, CandidatePart):
    """A good answer, rewritten with plausible errors."""

    writes: ClassVar[tuple[str, ...]] = ("injected",)

    of: Literal["reference", "policy"] = Field(
        "reference", description="Rewrite the annotation, or the policy's first candidate."
    )
    count: int = Field(1, ge=1, le=16, description="Rewritings of one answer.")

    def open(self, context: SourceContext) -> Source:
        return InjectedSource(self, context, self._writer(context))

    def _writer(self, context: SourceContext) -> Writer:
        if self.writer == "rules":
            from sightline_trainer.injection.rules import RuleWriter

            return RuleWriter.load(context.dataset / "vocabulary.json", self.kinds, self.errors)
        from sightline_trainer.injection.language_model import LanguageModelWriter, speaking

        return LanguageModelWriter(self, context.speaker(speaking(self)))


class InjectedSource:
    """Gets the reference, or the policy's first candidate, rewritten."""

    def __init__(self, settings: Injected, context: SourceContext, writer: Writer) -> None:
        self.settings = settings
        self.gate = context.gate
        self.seed = context.seed
        self.writer = writer

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        made: list[Response] = []
        for asked, text in self._good(prompt, ask):
            for number in range(self.settings.count):
                seed = prompt.seed(self.seed, ask.iteration, -3, number)
                rewritten = await self.writer(prompt, asked, text, seed)
                if rewritten is not None and rewritten != text:
                    index = len(ask.made) + len(made)
                    made.append(unsampled(self.gate, prompt, asked, rewritten, index=index, source="injected"))
        return made

    def _good(self, prompt: Prompt, ask: SourceRequest) -> list[tuple[str, str]]:
        """(user's text, answer to rewrite), one for each user's text."""
        if self.settings.of == "reference":
            asked = list(dict.fromkeys(candidate.prompt for candidate in ask.made)) or [prompt.prompt]
            return [(text, prompt.reference) for text in asked] if prompt.reference else []
        first: dict[str, str] = {}
        for candidate in ask.made:
            if candidate.source == "policy" and candidate.fault is None:
                first.setdefault(candidate.prompt, candidate.text)
        return list(first.items())
