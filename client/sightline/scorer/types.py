"""Results of the scorer's clients: frozen dataclasses with NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightline.convert import enum_name, from_message
from sightline.errors import SightlineError, Unsupported
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.wire import item_error

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """One model of an ensemble."""

    model: str
    weight: float
    """Its share of the score; the shares sum to 1."""
    weights_digest: str
    preprocessing_digest: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that gave a score; the digests are enough to reproduce it."""

    name: str
    architecture: str
    weights_digest: str
    """SHA-256 of the weights file, hexadecimal."""
    preprocessing_digest: str
    """SHA-256 of the preprocessing's parameters, hexadecimal."""
    embedding_size: int
    image_size: int
    """Width and height of the model's input image, in pixels."""
    context_length: int
    """Longest text in tokens, start and end tokens included."""
    logit_scale: float
    logit_bias: float
    is_default: bool
    kinds: tuple[str, ...]
    """The kinds of score that a request may ask for."""
    default_kind: str
    """The kind for requests that do not name one."""
    calibration_digest: str
    """SHA-256 of the calibration behind percentiles, hexadecimal; empty if there is none."""
    version: int
    """Number of the model's version, counted from 1 since the service started."""
    state: str
    """"loading", "ready", "draining" or "failed"."""
    error: str
    """Why a version failed."""
    precision: str
    """Precision of the towers: fp32, fp16 or bf16."""
    members: tuple[EnsembleMember, ...]
    """Of an ensemble."""
    model_kind: str
    """clip, pickscore, hpsv2, aesthetic, longclip, imagereward, vqa or ensemble; empty before 0.2.0."""
    backend: str
    """What runs it: triton-embedded, triton-remote, worker or sampler; empty for an ensemble and before 0.2.0."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a request to the service."""

    max_image_bytes: int
    max_image_pixels: int
    max_texts: int
    max_text_bytes: int
    max_digests: int
    max_images: int
    """Images of one Embed request; `embed` sends as many requests as needed."""
    uri_schemes: tuple[str, ...]
    """Schemes of `ImageUri` that the service fetches; empty if it fetches none."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models and limits of a service."""

    models: tuple[ModelInfo, ...]
    limits: Limits
    other_versions: tuple[ModelInfo, ...]
    """Versions that do not answer requests: loading, draining or failed."""
    picture_rule: str = ""
    """Version of the service's rule for reading pictures; empty before 0.2.0."""

    @property
    def default(self) -> ModelInfo:
        """The model for requests that do not name one."""
        return next(model for model in self.models if model.is_default)


@dataclass(frozen=True, slots=True)
class Timing:
    """The time that each part of a request took in the service, in seconds."""

    preprocess_seconds: float
    image_seconds: float
    text_seconds: float
    total_seconds: float
    image_cached: bool
    """Whether the image's embedding came from the cache."""
    texts_cached: int
    """Number of texts, or parts of texts, whose embedding came from the cache."""


@dataclass(frozen=True, slots=True)
class PartScore:
    """How well one part of a text fits the image."""

    text: str
    value: float
    """The score, of the requested kind."""
    cosine: float
    token_count: int
    pieces: int
    """Number of pieces that a part longer than the window was split into; otherwise 1."""
    sentence_split: bool
    """Whether it is a piece of a sentence longer than the window, or was split into pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """Scores of one image with K texts, in the order of the texts."""

    value: Floats
    """[K] the score, of the requested kind."""
    kind: str
    """What `value` holds."""
    cosine: Floats
    """[K] cosine of the image's and the text's embedding, in [-1, 1]."""
    clip_score: Floats
    """[K] CLIPScore: 100 * max(cosine, 0)."""
    logit: Floats
    """[K] the model's own logit: logit_scale * cosine + logit_bias."""
    token_counts: npt.NDArray[np.int32]
    """[K] number of tokens of each text, start and end tokens included."""
    parts: npt.NDArray[np.int32]
    """[K] 1, or the number of parts whose scores were aggregated."""
    part_scores: tuple[tuple[PartScore, ...], ...]
    """[K] the parts' own scores; empty for a text that was scored as a whole."""
    sentence_split: npt.NDArray[np.bool_]
    """[K] whether a part was longer than the model's window and had to be split."""
    model: ModelInfo
    image_sha256: str
    """SHA-256 of the image's bytes, hexadecimal."""
    timing: Timing

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The embedding of one image or text."""

    vector: Floats
    """[D], normalised to length 1 (within the precision that it was sent in)."""
    image_sha256: str
    """SHA-256 of the image's bytes, hexadecimal; empty for a text."""
    token_count: int
    """Number of the text's tokens; 0 for an image."""
    parts: int
    """Number of parts of the text whose mean this is; 0 for an image."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbedResult:
    """Embeddings, in the order of the request; a failed item has its error in its place."""

    images: tuple[Embedding | SightlineError, ...]
    texts: tuple[Embedding | SightlineError, ...]
    model: ModelInfo

    def image_matrix(self) -> Floats:
        """[N, D] for all images. Raises the first image's error, if any failed."""
        return _matrix(self.images, self.model.embedding_size)

    def text_matrix(self) -> Floats:
        """[M, D] for all texts. Raises the first text's error, if any failed."""
        return _matrix(self.texts, self.model.embedding_size)


def _matrix(outcomes: Iterable[Embedding | SightlineError], size: int) -> Floats:
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, SightlineError):
            raise outcome
        rows.append(outcome.vector)
    return np.stack(rows) if rows else np.empty((0, size), np.float32)


def score_result(message: pb.ScoreResponse, asked: pb.ScoreKind) -> ScoreResult:
    """From the wire. Raises Unsupported if the service answered with another kind of score than the requested one."""
    if message.kind == pb.SCORE_KIND_UNSPECIFIED or asked not in (pb.SCORE_KIND_UNSPECIFIED, message.kind):
        raise Unsupported(
            f"the service answered with {_kind(message.kind)} where {_kind(asked)} was asked for: is it older than "
            "this client?",
            reason="KIND_UNSUPPORTED",
        )
    scores = message.scores
    return ScoreResult(
        value=np.array([score.value for score in scores], dtype=np.float32),
        kind=_kind(message.kind),
        cosine=np.array([score.cosine for score in scores], dtype=np.float32),
        clip_score=np.array([score.clip_score for score in scores], dtype=np.float32),
        logit=np.array([score.logit for score in scores], dtype=np.float32),
        token_counts=np.array([score.token_count for score in scores], dtype=np.int32),
        parts=np.array([score.parts for score in scores], dtype=np.int32),
        part_scores=tuple(tuple(from_message(part, PartScore) for part in score.part_scores) for score in scores),
        sentence_split=np.array([score.sentence_split for score in scores], dtype=np.bool_),
        model=from_message(message.model, ModelInfo),
        image_sha256=message.image_sha256.hex(),
        timing=from_message(message.timing, Timing),
    )


def _kind(number: int) -> str:
    return enum_name(pb.ScoreKind.DESCRIPTOR, number)


def embed_result(messages: Sequence[pb.EmbedResponse]) -> EmbedResult:
    """From the wire: the answers of one or more requests, in order."""
    return EmbedResult(
        images=tuple(_embed_outcome(one, part.format) for part in messages for one in part.images),
        texts=tuple(_embed_outcome(one, part.format) for part in messages for one in part.texts),
        model=from_message(messages[0].model, ModelInfo),
    )


def _embed_outcome(message: pb.EmbedOutcome, form: pb.EmbeddingFormat) -> Embedding | SightlineError:
    if message.WhichOneof("outcome") != "embedding":
        return item_error(message.error)
    one = message.embedding
    dtype = "<f2" if form == pb.EMBEDDING_FORMAT_FLOAT16 else "<f4"
    vector = np.frombuffer(one.values, dtype=dtype).astype(np.float32)
    return Embedding(vector, one.image_sha256.hex(), one.token_count, one.parts)
