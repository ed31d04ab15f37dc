"""Rewriting: the writer that puts errors into a good answer, and their kinds."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from sightline_chassis.settings import Section, Target

from sightline_trainer.injection.kinds import Kind
from sightline_trainer.web_service import Url


class Rewriting(Section):
    """The writer of errors, and how it works."""

    writer: Literal["rules", "sampler", "openai"] = Field("rules", description="The writer of errors.")
    kinds: list[Kind] = Field(
        ["add_object", "swap_object", "swap_attribute", "swap_relation"],
        min_length=1,
        description="Allowed kinds of errors.",
    )
    errors: int = Field(1, ge=1, le=8, description="Errors in one answer.")
    address: Target | None = Field(None, description="gRPC target of the sampler with the text LLM (writer: sampler).")
    url: Url | None = Field(
        None, description="Base URL such as http://llm:8000/v1 (writer: openai); null: SIGHTLINE_LLM_URL."
    )
    model: str = Field("", description="Name of the model at the URL (writer: openai).")
    temperature: float = Field(0.8, ge=0.0, le=2.0, description="Temperature of the text LLM (BPO: 0.8).")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="Nucleus mass of the text LLM (BPO: 0.95).")
    max_tokens: int = Field(512, ge=1, description="Maximum tokens of a rewriting.")
    timeout_seconds: float = Field(120.0, gt=0.0, description="Deadline of one rewriting.")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.writer == "sampler" and not self.address:
            raise ValueError("writer: sampler needs a sampler with a text LLM: set address to HOST:PORT")
        if self.writer == "openai" and not self.model:
            raise ValueError("writer: openai needs a model")
        return self
