"""``injected``: a good answer rewritten with plausible errors, as the rejected one.

POVID has GPT-4V do it, BPO a text LLM. Who rewrites: ``rules`` (words of the dataset's vocabulary.json change
places), ``sampler`` (a text LLM behind a sampler of ours) or ``openai`` (any OpenAI-compatible endpoint).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sightline_trainer.candidates.candidate import Candidate
from sightline_trainer.candidates.reference import written
from sightline_trainer.candidates.source import Ask, CandidatePart, Context, Source
from sightline_trainer.injection.kinds import Kind
from sightline_trainer.injection.writer import Writer
from sightline_trainer.prompts import Prompt


class Injected(CandidatePart):
    """A good answer, rewritten with plausible errors."""

    of: Literal["reference", "policy"] = Field(
        "reference", description="Rewrite the annotation, or the policy's first candidate."
    )
    count: int = Field(1, ge=1, le=16, description="Rewritings of one answer.")
    writer: Literal["rules", "sampler", "openai"] = Field("rules", description="Who rewrites.")
    kinds: list[Kind] = Field(
        ["add_object", "swap_object", "swap_attribute", "swap_relation"],
        min_length=1,
        description="Errors that may be made.",
    )
    errors: int = Field(1, ge=1, le=8, description="Errors in one answer.")
    address: str | None = Field(None, description="gRPC target of the sampler with the text LLM (writer: sampler).")
    url: str | None = Field(
        None, description="Base URL such as http://llm:8000/v1 (writer: openai); null: that of SIGHTLINE_LLM_URL."
    )
    model: str = Field("", description="Name of the model at the URL (writer: openai).")
    temperature: float = Field(0.8, ge=0.0, le=2.0, description="Of the text LLM (BPO: 0.8).")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="Of the text LLM (BPO: 0.95).")
    max_tokens: int = Field(512, ge=1, description="Most tokens of a rewriting.")
    timeout_seconds: float = Field(120.0, gt=0.0, description="Deadline of one rewriting.")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.writer == "sampler" and not self.address:
            raise ValueError("writer: sampler needs the address of a sampler with a text LLM")
        if self.writer == "openai" and not self.model:
            raise ValueError("writer: openai needs a model")
        return self

    def open(self, context: Context) -> Source:
        return InjectedSource(self, context, self._writer(context))

    def _writer(self, context: Context) -> Writer:
        if self.writer == "rules":
            from sightline_trainer.injection.rules import RuleWriter

            return RuleWriter.load(context.dataset / "vocabulary.json", self.kinds, self.errors)
        from sightline_trainer.injection.language_model import OpenAiWriter, SamplerWriter

        if self.writer == "sampler":
            return SamplerWriter(self, context.connect(self.address or ""))
        writer = OpenAiWriter(self)
        context.closing.push_async_callback(writer.close)
        return writer


class InjectedSource:
    """Has the reference, or the policy's first candidate, rewritten."""

    def __init__(self, settings: Injected, context: Context, writer: Writer) -> None:
        self.settings = settings
        self.wording = context.wording
        self.seed = context.recipe.seed
        self.writer = writer

    async def __call__(self, prompt: Prompt, ask: Ask) -> list[Candidate]:
        made: list[Candidate] = []
        for asked, text in self._good(prompt, ask):
            for number in range(self.settings.count):
                seed = prompt.seed(self.seed, ask.iteration, -3, number)
                rewritten = await self.writer(prompt, asked, text, seed)
                if rewritten is not None and rewritten != text:
                    index = len(ask.made) + len(made)
                    made.append(written(self.wording, prompt, asked, rewritten, index=index, source="injected"))
        return made

    def _good(self, prompt: Prompt, ask: Ask) -> list[tuple[str, str]]:
        """(user's text, answer to rewrite), one for each user's text that was asked."""
        if self.settings.of == "reference":
            asked = list(dict.fromkeys(candidate.prompt for candidate in ask.made)) or [prompt.prompt]
            return [(text, prompt.reference) for text in asked] if prompt.reference else []
        first: dict[str, str] = {}
        for candidate in ask.made:
            if candidate.source == "policy":
                first.setdefault(candidate.prompt, candidate.text)
        return list(first.items())
