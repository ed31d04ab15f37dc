from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LongText(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LONG_TEXT_UNSPECIFIED: _ClassVar[LongText]
    LONG_TEXT_SENTENCES: _ClassVar[LongText]
    LONG_TEXT_REJECT: _ClassVar[LongText]

class ScoreKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_KIND_UNSPECIFIED: _ClassVar[ScoreKind]
    SCORE_KIND_COSINE: _ClassVar[ScoreKind]
    SCORE_KIND_CLIP_SCORE: _ClassVar[ScoreKind]
    SCORE_KIND_LOGIT: _ClassVar[ScoreKind]
    SCORE_KIND_PROBABILITY: _ClassVar[ScoreKind]
    SCORE_KIND_PERCENTILE: _ClassVar[ScoreKind]
    SCORE_KIND_REWARD: _ClassVar[ScoreKind]

class TextUnit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEXT_UNIT_UNSPECIFIED: _ClassVar[TextUnit]
    TEXT_UNIT_WHOLE: _ClassVar[TextUnit]
    TEXT_UNIT_SENTENCES: _ClassVar[TextUnit]
    TEXT_UNIT_PHRASES: _ClassVar[TextUnit]

class Aggregation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGGREGATION_UNSPECIFIED: _ClassVar[Aggregation]
    AGGREGATION_MEAN: _ClassVar[Aggregation]
    AGGREGATION_MIN: _ClassVar[Aggregation]
    AGGREGATION_SUM: _ClassVar[Aggregation]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class EmbeddingFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EMBEDDING_FORMAT_UNSPECIFIED: _ClassVar[EmbeddingFormat]
    EMBEDDING_FORMAT_FLOAT32: _ClassVar[EmbeddingFormat]
    EMBEDDING_FORMAT_FLOAT16: _ClassVar[EmbeddingFormat]
LONG_TEXT_UNSPECIFIED: LongText
LONG_TEXT_SENTENCES: LongText
LONG_TEXT_REJECT: LongText
SCORE_KIND_UNSPECIFIED: ScoreKind
SCORE_KIND_COSINE: ScoreKind
SCORE_KIND_CLIP_SCORE: ScoreKind
SCORE_KIND_LOGIT: ScoreKind
SCORE_KIND_PROBABILITY: ScoreKind
SCORE_KIND_PERCENTILE: ScoreKind
SCORE_KIND_REWARD: ScoreKind
TEXT_UNIT_UNSPECIFIED: TextUnit
TEXT_UNIT_WHOLE: TextUnit
TEXT_UNIT_SENTENCES: TextUnit
TEXT_UNIT_PHRASES: TextUnit
AGGREGATION_UNSPECIFIED: Aggregation
AGGREGATION_MEAN: Aggregation
AGGREGATION_MIN: Aggregation
AGGREGATION_SUM: Aggregation
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_DRAINING: ModelState
MODEL_STATE_FAILED: ModelState
EMBEDDING_FORMAT_UNSPECIFIED: EmbeddingFormat
EMBEDDING_FORMAT_FLOAT32: EmbeddingFormat
EMBEDDING_FORMAT_FLOAT16: EmbeddingFormat

class Image(_message.Message):
    __slots__ = ("content", "sha256", "uri")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    sha256: bytes
    uri: str
    def __init__(self, content: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., uri: _Optional[str] = ...) -> None: ...

class Phrases(_message.Message):
    __slots__ = ("phrases",)
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    phrases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, phrases: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("image", "texts", "model", "long_text", "kind", "unit", "aggregation", "phrases")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LONG_TEXT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    image: Image
    texts: _containers.RepeatedScalarFieldContainer[str]
    model: str
    long_text: LongText
    kind: ScoreKind
    unit: TextUnit
    aggregation: Aggregation
    phrases: _containers.RepeatedCompositeFieldContainer[Phrases]
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., long_text: _Optional[_Union[LongText, str]] = ..., kind: _Optional[_Union[ScoreKind, str]] = ..., unit: _Optional[_Union[TextUnit, str]] = ..., aggregation: _Optional[_Union[Aggregation, str]] = ..., phrases: _Optional[_Iterable[_Union[Phrases, _Mapping]]] = ...) -> None: ...

class TextScore(_message.Message):
    __slots__ = ("cosine", "clip_score", "logit", "token_count", "parts", "value", "part_scores", "sentence_split")
    COSINE_FIELD_NUMBER: _ClassVar[int]
    CLIP_SCORE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PART_SCORES_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_SPLIT_FIELD_NUMBER: _ClassVar[int]
    cosine: float
    clip_score: float
    logit: float
    token_count: int
    parts: int
    value: float
    part_scores: _containers.RepeatedCompositeFieldContainer[PartScore]
    sentence_split: bool
    def __init__(self, cosine: _Optional[float] = ..., clip_score: _Optional[float] = ..., logit: _Optional[float] = ..., token_count: _Optional[int] = ..., parts: _Optional[int] = ..., value: _Optional[float] = ..., part_scores: _Optional[_Iterable[_Union[PartScore, _Mapping]]] = ..., sentence_split: bool = ...) -> None: ...

class PartScore(_message.Message):
    __slots__ = ("text", "value", "cosine", "token_count", "pieces", "sentence_split")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_SPLIT_FIELD_NUMBER: _ClassVar[int]
    text: str
    value: float
    cosine: float
    token_count: int
    pieces: int
    sentence_split: bool
    def __init__(self, text: _Optional[str] = ..., value: _Optional[float] = ..., cosine: _Optional[float] = ..., token_count: _Optional[int] = ..., pieces: _Optional[int] = ..., sentence_split: bool = ...) -> None: ...

class EnsembleMember(_message.Message):
    __slots__ = ("model", "weight", "weights_digest", "preprocessing_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    weight: float
    weights_digest: str
    preprocessing_digest: str
    def __init__(self, model: _Optional[str] = ..., weight: _Optional[float] = ..., weights_digest: _Optional[str] = ..., preprocessing_digest: _Optional[str] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "architecture", "weights_digest", "preprocessing_digest", "embedding_size", "image_size", "context_length", "logit_scale", "logit_bias", "is_default", "kinds", "calibration_digest", "version", "state", "error", "precision", "members", "default_kind", "model_kind", "backend")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SCALE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_KIND_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    weights_digest: str
    preprocessing_digest: str
    embedding_size: int
    image_size: int
    context_length: int
    logit_scale: float
    logit_bias: float
    is_default: bool
    kinds: _containers.RepeatedScalarFieldContainer[ScoreKind]
    calibration_digest: str
    version: int
    state: ModelState
    error: str
    precision: str
    members: _containers.RepeatedCompositeFieldContainer[EnsembleMember]
    default_kind: ScoreKind
    model_kind: str
    backend: str
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., weights_digest: _Optional[str] = ..., preprocessing_digest: _Optional[str] = ..., embedding_size: _Optional[int] = ..., image_size: _Optional[int] = ..., context_length: _Optional[int] = ..., logit_scale: _Optional[float] = ..., logit_bias: _Optional[float] = ..., is_default: bool = ..., kinds: _Optional[_Iterable[_Union[ScoreKind, str]]] = ..., calibration_digest: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[ModelState, str]] = ..., error: _Optional[str] = ..., precision: _Optional[str] = ..., members: _Optional[_Iterable[_Union[EnsembleMember, _Mapping]]] = ..., default_kind: _Optional[_Union[ScoreKind, str]] = ..., model_kind: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("preprocess_seconds", "image_seconds", "text_seconds", "total_seconds", "image_cached", "texts_cached")
    PREPROCESS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_CACHED_FIELD_NUMBER: _ClassVar[int]
    TEXTS_CACHED_FIELD_NUMBER: _ClassVar[int]
    preprocess_seconds: float
    image_seconds: float
    text_seconds: float
    total_seconds: float
    image_cached: bool
    texts_cached: int
    def __init__(self, preprocess_seconds: _Optional[float] = ..., image_seconds: _Optional[float] = ..., text_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., image_cached: bool = ..., texts_cached: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "model", "image_sha256", "timing", "kind")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[TextScore]
    model: ModelInfo
    image_sha256: bytes
    timing: Timing
    kind: ScoreKind
    def __init__(self, scores: _Optional[_Iterable[_Union[TextScore, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., image_sha256: _Optional[bytes] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., kind: _Optional[_Union[ScoreKind, str]] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: ScoreRequest
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[ScoreRequest, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "reason", "message", "retry_after_seconds", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    retry_after_seconds: float
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: ScoreResponse
    error: ItemError
    def __init__(self, id: _Optional[int] = ..., response: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class FindMissingImagesRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FindMissingImagesResponse(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UploadImagesRequest(_message.Message):
    __slots__ = ("sha256", "chunk", "last")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    chunk: bytes
    last: bool
    def __init__(self, sha256: _Optional[bytes] = ..., chunk: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class UploadImagesResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[UploadOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[UploadOutcome, _Mapping]]] = ...) -> None: ...

class UploadOutcome(_message.Message):
    __slots__ = ("sha256", "error")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    error: ItemError
    def __init__(self, sha256: _Optional[bytes] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "limits", "other_versions", "picture_rule")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    OTHER_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PICTURE_RULE_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    limits: Limits
    other_versions: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    picture_rule: str
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., other_versions: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., picture_rule: _Optional[str] = ...) -> None: ...

class ReloadModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadModelsResponse(_message.Message):
    __slots__ = ("models", "changed", "removed")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    changed: _containers.RepeatedScalarFieldContainer[str]
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., changed: _Optional[_Iterable[str]] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("images", "texts", "model", "long_text", "format")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LONG_TEXT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    texts: _containers.RepeatedScalarFieldContainer[str]
    model: str
    long_text: LongText
    format: EmbeddingFormat
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., texts: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., long_text: _Optional[_Union[LongText, str]] = ..., format: _Optional[_Union[EmbeddingFormat, str]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values", "image_sha256", "token_count", "parts")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    image_sha256: bytes
    token_count: int
    parts: int
    def __init__(self, values: _Optional[bytes] = ..., image_sha256: _Optional[bytes] = ..., token_count: _Optional[int] = ..., parts: _Optional[int] = ...) -> None: ...

class EmbedOutcome(_message.Message):
    __slots__ = ("embedding", "error")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    embedding: Embedding
    error: ItemError
    def __init__(self, embedding: _Optional[_Union[Embedding, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("images", "texts", "model", "format")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[EmbedOutcome]
    texts: _containers.RepeatedCompositeFieldContainer[EmbedOutcome]
    model: ModelInfo
    format: EmbeddingFormat
    def __init__(self, images: _Optional[_Iterable[_Union[EmbedOutcome, _Mapping]]] = ..., texts: _Optional[_Iterable[_Union[EmbedOutcome, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., format: _Optional[_Union[EmbeddingFormat, str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_image_bytes", "max_image_pixels", "max_texts", "max_text_bytes", "max_digests", "max_images", "uri_schemes")
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    URI_SCHEMES_FIELD_NUMBER: _ClassVar[int]
    max_image_bytes: int
    max_image_pixels: int
    max_texts: int
    max_text_bytes: int
    max_digests: int
    max_images: int
    uri_schemes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_texts: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_digests: _Optional[int] = ..., max_images: _Optional[int] = ..., uri_schemes: _Optional[_Iterable[str]] = ...) -> None: ...
