"""What the scorer's clients answer: frozen dataclasses with NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightline_scorer.v1 import scorer_pb2 as pb


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model gave a score; with the digests, enough to give it again."""

    name: str
    architecture: str
    weights_digest: str
    """SHA-256 of the weights file, hexadecimal."""
    preprocessing_digest: str
    """SHA-256 of the preprocessing's parameters, hexadecimal."""
    embedding_size: int
    image_size: int
    """Side of the square image that the model sees, in pixels."""
    context_length: int
    """Longest text in tokens, start and end tokens included."""
    logit_scale: float
    logit_bias: float
    is_default: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request to the service may hold."""

    max_image_bytes: int
    max_image_pixels: int
    max_texts: int
    max_text_bytes: int
    max_digests: int


@dataclass(frozen=True, slots=True)
class Models:
    """The models and limits of a service."""

    models: tuple[ModelInfo, ...]
    limits: Limits

    @property
    def default(self) -> ModelInfo:
        """The model of requests that name none."""
        return next(model for model in self.models if model.is_default)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went, in seconds, as the service saw it."""

    preprocess_seconds: float
    image_seconds: float
    text_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """Scores of one image with K texts, in the order of the texts."""

    cosine: npt.NDArray[np.float32]
    """[K] cosine of the image's and the text's embedding, in [-1, 1]."""
    clip_score: npt.NDArray[np.float32]
    """[K] CLIPScore: 100 * max(cosine, 0)."""
    logit: npt.NDArray[np.float32]
    """[K] the model's own logit: logit_scale * cosine + logit_bias."""
    token_counts: npt.NDArray[np.int32]
    """[K] tokens of each text, start and end tokens included."""
    parts: npt.NDArray[np.int32]
    """[K] 1, or the number of sentences whose mean the score of a long text is."""
    model: ModelInfo
    image_sha256: str
    """SHA-256 of the image's bytes, hexadecimal."""
    timing: Timing

    def __len__(self) -> int:
        return len(self.cosine)


def model_info(message: pb.ModelInfo) -> ModelInfo:
    """From the wire."""
    return ModelInfo(**{name: getattr(message, name) for name in ModelInfo.__slots__})


def models(message: pb.ListModelsResponse) -> Models:
    """From the wire."""
    limits = Limits(**{name: getattr(message.limits, name) for name in Limits.__slots__})
    return Models(tuple(map(model_info, message.models)), limits)


def score_result(message: pb.ScoreResponse) -> ScoreResult:
    """From the wire."""
    scores = message.scores
    return ScoreResult(
        cosine=np.array([score.cosine for score in scores], dtype=np.float32),
        clip_score=np.array([score.clip_score for score in scores], dtype=np.float32),
        logit=np.array([score.logit for score in scores], dtype=np.float32),
        token_counts=np.array([score.token_count for score in scores], dtype=np.int32),
        parts=np.array([score.parts for score in scores], dtype=np.int32),
        model=model_info(message.model),
        image_sha256=message.image_sha256.hex(),
        timing=Timing(**{name: getattr(message.timing, name) for name in Timing.__slots__}),
    )
