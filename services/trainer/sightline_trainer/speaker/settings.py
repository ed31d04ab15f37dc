"""Which language model a part asks, and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from sightline_chassis.settings import Section, Target

from sightline_trainer.web_service import Url


class Speaking(Section):
    """The model that answers: the policy itself, another sampler, or an OpenAI-compatible endpoint."""

    who: Literal["policy", "sampler", "openai"] = Field(
        "policy",
        description=(
            "The model that answers: the policy that wrote the candidates, another sampler (address), or an "
            "OpenAI-compatible endpoint (url)."
        ),
    )
    address: Target | None = Field(None, description="gRPC target of the sampler (who: sampler).")
    url: Url | None = Field(
        None, description="Base URL such as http://llm:8000/v1 (who: openai); null: SIGHTLINE_LLM_URL."
    )
    model: str = Field("", description="Name of the model at the URL (who: openai).")
    image: bool = Field(True, description="Show the picture.")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="Softmax temperature of the answer; 0 is greedy.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus mass of the answer.")
    max_tokens: int = Field(256, ge=1, description="Maximum tokens of an answer.")
    timeout_seconds: float = Field(120.0, gt=0.0, description="Deadline of one answer.")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.who == "sampler" and not self.address:
            raise ValueError("who: sampler needs a sampler: set address to HOST:PORT")
        if self.who == "openai" and not self.model:
            raise ValueError("who: openai needs a model: set model to its name at the endpoint")
        return self
