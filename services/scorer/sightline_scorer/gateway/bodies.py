"""The gateway's JSON, as OpenAPI describes it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sightline.errors import SightlineError
from sightline.integrations.columns import base64_bytes
from sightline.scorer.types import ModelInfo, ScoreResult
from sightline.scorer.wire import Image, ImageDigest, ImageUri, ScoreOptions


class Body(BaseModel):
    """Unknown keys are refused, since a misspelt option would have no effect."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ImageBody(Body):
    """An image: exactly one of the three."""

    base64: str | None = Field(None, description="The encoded file (JPEG, PNG, WebP, GIF), in base64")
    sha256: str | None = Field(None, description="64 hexadecimal digits: an image uploaded before by /v1/images")
    uri: str | None = Field(None, description="Where the scorer fetches the file, if its settings allow it")

    @model_validator(mode="after")
    def _one_source(self) -> ImageBody:
        if sum(value is not None for value in (self.base64, self.sha256, self.uri)) != 1:
            raise ValueError("give one of base64, sha256 and uri")
        return self

    def image(self) -> Image:
        """For the client. Raises InvalidInput."""
        if self.sha256 is not None:
            return ImageDigest(self.sha256)
        if self.uri is not None:
            return ImageUri(self.uri)
        return base64_bytes(self.base64 or "")


class BodyOptions(Body):
    """How texts are scored."""

    model: str = Field("", description="A name from /v1/models; empty: the default")
    kind: Literal["default", "cosine", "clip_score", "logit", "probability", "percentile", "reward"] = "default"
    unit: Literal["whole", "sentences", "phrases"] | None = Field(
        None, description="Which parts of a text are scored; default: phrases if phrases are given, else whole"
    )
    aggregation: Literal["mean", "min", "sum"] = "mean"
    long_text: Literal["sentences", "reject"] = Field(
        "sentences", description="What to do with a text longer than the model's window"
    )

    def options(self) -> ScoreOptions:
        """For the client."""
        found: ScoreOptions = {
            "model": self.model, "kind": self.kind, "aggregation": self.aggregation, "long_text": self.long_text
        }  # fmt: skip
        if self.unit is not None:
            found["unit"] = self.unit
        return found


class ItemBody(Body):
    """One image and the texts to compare with it."""

    image: ImageBody
    texts: list[str] = Field(min_length=1)
    phrases: list[list[str]] | None = Field(None, description="Parts of each text to score beside it")


class ScoreBody(BodyOptions, ItemBody):
    """One item and how it is scored."""


class ScoreManyBody(BodyOptions):
    """Many items; each has its own outcome."""

    items: list[ItemBody] = Field(min_length=1)


class RewardBody(BaseModel):
    """OpenRLHF's request; other keys are ignored, as in its own server."""

    query: list[str] = Field(min_length=1, description="Prompt and response of each row, decoded")
    prompts: list[str]
    labels: list[Any] = Field(description="Names the image of each row")


class PartBody(Body):
    """The score of a part of a text."""

    text: str
    value: float
    cosine: float
    token_count: int
    pieces: int
    sentence_split: bool


class TextBody(Body):
    """The scores of one text."""

    value: float = Field(description="The requested kind of score")
    cosine: float
    clip_score: float
    logit: float
    token_count: int
    parts: int
    sentence_split: bool
    part_scores: list[PartBody]


class ModelBody(BaseModel):
    """The model that gave a score; the digests are enough to reproduce it."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str
    weights_digest: str
    preprocessing_digest: str
    version: int


class ResultBody(Body):
    """The scores, in the order of the texts."""

    scores: list[TextBody]
    kind: str
    model: ModelBody
    image_sha256: str
    seconds: float = Field(description="Whole time in the scorer")


class ErrorBody(Body):
    """Why there is no score. A failure is never a number."""

    code: str = Field(description="The gRPC status, such as INVALID_ARGUMENT")
    reason: str = Field(description="UPPER_SNAKE, for programs")
    message: str
    retry_after_seconds: float | None = None
    metadata: dict[str, str] = {}


class FailureBody(Body):
    """The body of every response that is not a success."""

    error: ErrorBody


class OutcomeBody(Body):
    """The outcome of one item: one of the two."""

    result: ResultBody | None = None
    error: ErrorBody | None = None


class ManyBody(Body):
    """Outcomes, in the order of the items."""

    outcomes: list[OutcomeBody]


class UploadBody(Body):
    """The name of a stored image."""

    sha256: str


class ModelsBody(Body):
    """The available models and limits."""

    models: list[ModelBody]
    limits: dict[str, Any]


class RewardsBody(BaseModel):
    """OpenRLHF's response; a reward may be NaN if so configured."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def model_body(model: ModelInfo) -> ModelBody:
    """From the client."""
    return ModelBody.model_validate(dataclasses.asdict(model))


def result_body(result: ScoreResult) -> ResultBody:
    """From the client."""
    scores = [
        TextBody(
            value=float(result.value[k]),
            cosine=float(result.cosine[k]),
            clip_score=float(result.clip_score[k]),
            logit=float(result.logit[k]),
            token_count=int(result.token_counts[k]),
            parts=int(result.parts[k]),
            sentence_split=bool(result.sentence_split[k]),
            part_scores=[PartBody(**dataclasses.asdict(part)) for part in result.part_scores[k]],
        )
        for k in range(len(result))
    ]
    return ResultBody(
        scores=scores,
        kind=result.kind,
        model=model_body(result.model),
        image_sha256=result.image_sha256,
        seconds=result.timing.total_seconds,
    )


def error_body(error: SightlineError) -> ErrorBody:
    """From the client."""
    return ErrorBody(
        code=error.code.name,
        reason=error.reason,
        message=error.message,
        retry_after_seconds=error.retry_after,
        metadata=error.metadata,
    )
