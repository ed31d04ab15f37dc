from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_EOS: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORTED: _ClassVar[FinishReason]

class PolicyKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_KIND_UNSPECIFIED: _ClassVar[PolicyKind]
    POLICY_KIND_BASE: _ClassVar[PolicyKind]
    POLICY_KIND_LORA: _ClassVar[PolicyKind]
    POLICY_KIND_MERGED: _ClassVar[PolicyKind]
    POLICY_KIND_FULL: _ClassVar[PolicyKind]

class PolicyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_STATE_UNSPECIFIED: _ClassVar[PolicyState]
    POLICY_STATE_STAGED: _ClassVar[PolicyState]
    POLICY_STATE_ACTIVE: _ClassVar[PolicyState]
    POLICY_STATE_RETIRED: _ClassVar[PolicyState]

class PauseMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAUSE_MODE_UNSPECIFIED: _ClassVar[PauseMode]
    PAUSE_MODE_DRAIN: _ClassVar[PauseMode]
    PAUSE_MODE_ABORT: _ClassVar[PauseMode]
    PAUSE_MODE_KEEP: _ClassVar[PauseMode]

class LogprobMeaning(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOGPROB_MEANING_UNSPECIFIED: _ClassVar[LogprobMeaning]
    LOGPROB_MEANING_POLICY: _ClassVar[LogprobMeaning]
    LOGPROB_MEANING_BEHAVIOUR: _ClassVar[LogprobMeaning]
    LOGPROB_MEANING_BOTH: _ClassVar[LogprobMeaning]

class SwapMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SWAP_MODE_UNSPECIFIED: _ClassVar[SwapMode]
    SWAP_MODE_NONE: _ClassVar[SwapMode]
    SWAP_MODE_RESTART: _ClassVar[SwapMode]
    SWAP_MODE_HOT: _ClassVar[SwapMode]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_EOS: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORTED: FinishReason
POLICY_KIND_UNSPECIFIED: PolicyKind
POLICY_KIND_BASE: PolicyKind
POLICY_KIND_LORA: PolicyKind
POLICY_KIND_MERGED: PolicyKind
POLICY_KIND_FULL: PolicyKind
POLICY_STATE_UNSPECIFIED: PolicyState
POLICY_STATE_STAGED: PolicyState
POLICY_STATE_ACTIVE: PolicyState
POLICY_STATE_RETIRED: PolicyState
PAUSE_MODE_UNSPECIFIED: PauseMode
PAUSE_MODE_DRAIN: PauseMode
PAUSE_MODE_ABORT: PauseMode
PAUSE_MODE_KEEP: PauseMode
LOGPROB_MEANING_UNSPECIFIED: LogprobMeaning
LOGPROB_MEANING_POLICY: LogprobMeaning
LOGPROB_MEANING_BEHAVIOUR: LogprobMeaning
LOGPROB_MEANING_BOTH: LogprobMeaning
SWAP_MODE_UNSPECIFIED: SwapMode
SWAP_MODE_NONE: SwapMode
SWAP_MODE_RESTART: SwapMode
SWAP_MODE_HOT: SwapMode

class Image(_message.Message):
    __slots__ = ("content", "sha256")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    sha256: bytes
    def __init__(self, content: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class TurnPart(_message.Message):
    __slots__ = ("text", "image")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    text: str
    image: Image
    def __init__(self, text: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("role", "parts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    parts: _containers.RepeatedCompositeFieldContainer[TurnPart]
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., parts: _Optional[_Iterable[_Union[TurnPart, _Mapping]]] = ...) -> None: ...

class PolicySelector(_message.Message):
    __slots__ = ("exact", "at_least", "run_id")
    EXACT_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    exact: int
    at_least: int
    run_id: str
    def __init__(self, exact: _Optional[int] = ..., at_least: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "max_tokens", "min_p", "repetition_penalty", "stop", "beams", "distortion", "guidance", "continue_from")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    BEAMS_FIELD_NUMBER: _ClassVar[int]
    DISTORTION_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FROM_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    min_p: float
    repetition_penalty: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    beams: DiverseBeams
    distortion: Distortion
    guidance: Guidance
    continue_from: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., max_tokens: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., beams: _Optional[_Union[DiverseBeams, _Mapping]] = ..., distortion: _Optional[_Union[Distortion, _Mapping]] = ..., guidance: _Optional[_Union[Guidance, _Mapping]] = ..., continue_from: _Optional[_Iterable[int]] = ...) -> None: ...

class DiverseBeams(_message.Message):
    __slots__ = ("groups", "diversity_penalty", "length_penalty")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    groups: int
    diversity_penalty: float
    length_penalty: float
    def __init__(self, groups: _Optional[int] = ..., diversity_penalty: _Optional[float] = ..., length_penalty: _Optional[float] = ...) -> None: ...

class DiffusionNoise(_message.Message):
    __slots__ = ("step", "seed")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    step: int
    seed: int
    def __init__(self, step: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class PixelNoise(_message.Message):
    __slots__ = ("step", "seed", "official")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFICIAL_FIELD_NUMBER: _ClassVar[int]
    step: int
    seed: int
    official: bool
    def __init__(self, step: _Optional[int] = ..., seed: _Optional[int] = ..., official: bool = ...) -> None: ...

class Blur(_message.Message):
    __slots__ = ("radius",)
    RADIUS_FIELD_NUMBER: _ClassVar[int]
    radius: float
    def __init__(self, radius: _Optional[float] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("min_area", "max_area", "seed")
    MIN_AREA_FIELD_NUMBER: _ClassVar[int]
    MAX_AREA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    min_area: float
    max_area: float
    seed: int
    def __init__(self, min_area: _Optional[float] = ..., max_area: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Blank(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Distortion(_message.Message):
    __slots__ = ("diffusion_noise", "pixel_noise", "blur", "crop", "blank")
    DIFFUSION_NOISE_FIELD_NUMBER: _ClassVar[int]
    PIXEL_NOISE_FIELD_NUMBER: _ClassVar[int]
    BLUR_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    BLANK_FIELD_NUMBER: _ClassVar[int]
    diffusion_noise: DiffusionNoise
    pixel_noise: PixelNoise
    blur: Blur
    crop: Crop
    blank: Blank
    def __init__(self, diffusion_noise: _Optional[_Union[DiffusionNoise, _Mapping]] = ..., pixel_noise: _Optional[_Union[PixelNoise, _Mapping]] = ..., blur: _Optional[_Union[Blur, _Mapping]] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ..., blank: _Optional[_Union[Blank, _Mapping]] = ...) -> None: ...

class ContrastiveDecoding(_message.Message):
    __slots__ = ("alpha", "beta", "distortion")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    DISTORTION_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    beta: float
    distortion: Distortion
    def __init__(self, alpha: _Optional[float] = ..., beta: _Optional[float] = ..., distortion: _Optional[_Union[Distortion, _Mapping]] = ...) -> None: ...

class ImageFreeGuidance(_message.Message):
    __slots__ = ("gamma", "distortion", "beta")
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    DISTORTION_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    gamma: float
    distortion: Distortion
    beta: float
    def __init__(self, gamma: _Optional[float] = ..., distortion: _Optional[_Union[Distortion, _Mapping]] = ..., beta: _Optional[float] = ...) -> None: ...

class PromptedGuidance(_message.Message):
    __slots__ = ("gamma", "prompt")
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    gamma: float
    prompt: str
    def __init__(self, gamma: _Optional[float] = ..., prompt: _Optional[str] = ...) -> None: ...

class Guidance(_message.Message):
    __slots__ = ("contrastive", "image_free", "prompted")
    CONTRASTIVE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FREE_FIELD_NUMBER: _ClassVar[int]
    PROMPTED_FIELD_NUMBER: _ClassVar[int]
    contrastive: ContrastiveDecoding
    image_free: ImageFreeGuidance
    prompted: PromptedGuidance
    def __init__(self, contrastive: _Optional[_Union[ContrastiveDecoding, _Mapping]] = ..., image_free: _Optional[_Union[ImageFreeGuidance, _Mapping]] = ..., prompted: _Optional[_Union[PromptedGuidance, _Mapping]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("request_id", "image", "prompt", "num_candidates", "seeds", "seed", "params", "policy", "indices", "turns")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    image: Image
    prompt: str
    num_candidates: int
    seeds: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    params: SamplingParams
    policy: PolicySelector
    indices: _containers.RepeatedScalarFieldContainer[int]
    turns: _containers.RepeatedCompositeFieldContainer[Turn]
    def __init__(self, request_id: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., prompt: _Optional[str] = ..., num_candidates: _Optional[int] = ..., seeds: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., params: _Optional[_Union[SamplingParams, _Mapping]] = ..., policy: _Optional[_Union[PolicySelector, _Mapping]] = ..., indices: _Optional[_Iterable[int]] = ..., turns: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "behaviour_logprobs", "finish_reason", "seed", "policy_version", "run_id")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOUR_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    behaviour_logprobs: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: FinishReason
    seed: int
    policy_version: int
    run_id: str
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., behaviour_logprobs: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., seed: _Optional[int] = ..., policy_version: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("candidate", "summary")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    candidate: Candidate
    summary: SampleSummary
    def __init__(self, candidate: _Optional[_Union[Candidate, _Mapping]] = ..., summary: _Optional[_Union[SampleSummary, _Mapping]] = ...) -> None: ...

class SampleSummary(_message.Message):
    __slots__ = ("prompt_tokens", "rendered_prompt", "policy_version", "engine", "seconds", "run_id")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RENDERED_PROMPT_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    rendered_prompt: str
    policy_version: int
    engine: str
    seconds: float
    run_id: str
    def __init__(self, prompt_tokens: _Optional[int] = ..., rendered_prompt: _Optional[str] = ..., policy_version: _Optional[int] = ..., engine: _Optional[str] = ..., seconds: _Optional[float] = ..., run_id: _Optional[str] = ...) -> None: ...

class ScoreTokensRequest(_message.Message):
    __slots__ = ("image", "prompt", "token_ids", "policy", "turns", "distortion")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    DISTORTION_FIELD_NUMBER: _ClassVar[int]
    image: Image
    prompt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    policy: PolicySelector
    turns: _containers.RepeatedCompositeFieldContainer[Turn]
    distortion: Distortion
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., prompt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., policy: _Optional[_Union[PolicySelector, _Mapping]] = ..., turns: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ..., distortion: _Optional[_Union[Distortion, _Mapping]] = ...) -> None: ...

class ScoreTokensResponse(_message.Message):
    __slots__ = ("logprobs", "policy_version", "run_id")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    policy_version: int
    run_id: str
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ..., policy_version: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class PolicyInfo(_message.Message):
    __slots__ = ("version", "kind", "state", "digest", "base_digest", "parent_version", "uri", "run_id", "iteration", "tensors", "changed_modules", "arrival")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_MODULES_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_FIELD_NUMBER: _ClassVar[int]
    version: int
    kind: PolicyKind
    state: PolicyState
    digest: str
    base_digest: str
    parent_version: int
    uri: str
    run_id: str
    iteration: int
    tensors: int
    changed_modules: int
    arrival: Arrival
    def __init__(self, version: _Optional[int] = ..., kind: _Optional[_Union[PolicyKind, str]] = ..., state: _Optional[_Union[PolicyState, str]] = ..., digest: _Optional[str] = ..., base_digest: _Optional[str] = ..., parent_version: _Optional[int] = ..., uri: _Optional[str] = ..., run_id: _Optional[str] = ..., iteration: _Optional[int] = ..., tensors: _Optional[int] = ..., changed_modules: _Optional[int] = ..., arrival: _Optional[_Union[Arrival, _Mapping]] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("image", "prompt", "token_ids", "logprobs", "previous_logprobs", "turns")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    image: Image
    prompt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    previous_logprobs: _containers.RepeatedScalarFieldContainer[float]
    turns: _containers.RepeatedCompositeFieldContainer[Turn]
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., prompt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., previous_logprobs: _Optional[_Iterable[float]] = ..., turns: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ...) -> None: ...

class Arrival(_message.Message):
    __slots__ = ("passed", "reason", "previous_version", "probes", "tokens", "changed", "correlation", "required_correlation", "gap", "previous_gap", "moved", "trainer_moved", "sampled_gap", "engine")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_GAP_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    TRAINER_MOVED_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_GAP_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    reason: str
    previous_version: int
    probes: int
    tokens: int
    changed: float
    correlation: float
    required_correlation: float
    gap: float
    previous_gap: float
    moved: float
    trainer_moved: float
    sampled_gap: float
    engine: str
    def __init__(self, passed: bool = ..., reason: _Optional[str] = ..., previous_version: _Optional[int] = ..., probes: _Optional[int] = ..., tokens: _Optional[int] = ..., changed: _Optional[float] = ..., correlation: _Optional[float] = ..., required_correlation: _Optional[float] = ..., gap: _Optional[float] = ..., previous_gap: _Optional[float] = ..., moved: _Optional[float] = ..., trainer_moved: _Optional[float] = ..., sampled_gap: _Optional[float] = ..., engine: _Optional[str] = ...) -> None: ...

class PushPolicyRequest(_message.Message):
    __slots__ = ("policy", "chunk")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    policy: PushedPolicy
    chunk: PushedChunk
    def __init__(self, policy: _Optional[_Union[PushedPolicy, _Mapping]] = ..., chunk: _Optional[_Union[PushedChunk, _Mapping]] = ...) -> None: ...

class PushedPolicy(_message.Message):
    __slots__ = ("manifest", "sizes", "arrival")
    class SizesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    sizes: _containers.ScalarMap[str, int]
    arrival: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., sizes: _Optional[_Mapping[str, int]] = ..., arrival: _Optional[bytes] = ...) -> None: ...

class PushedChunk(_message.Message):
    __slots__ = ("sha256", "offset", "data")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    data: bytes
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class MissingFile(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class PushPolicyResponse(_message.Message):
    __slots__ = ("missing", "uri")
    MISSING_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedCompositeFieldContainer[MissingFile]
    uri: str
    def __init__(self, missing: _Optional[_Iterable[_Union[MissingFile, _Mapping]]] = ..., uri: _Optional[str] = ...) -> None: ...

class StagePolicyRequest(_message.Message):
    __slots__ = ("uri", "version", "probes", "digest")
    URI_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    uri: str
    version: int
    probes: _containers.RepeatedCompositeFieldContainer[Probe]
    digest: str
    def __init__(self, uri: _Optional[str] = ..., version: _Optional[int] = ..., probes: _Optional[_Iterable[_Union[Probe, _Mapping]]] = ..., digest: _Optional[str] = ...) -> None: ...

class StagePolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyInfo
    def __init__(self, policy: _Optional[_Union[PolicyInfo, _Mapping]] = ...) -> None: ...

class ActivatePolicyRequest(_message.Message):
    __slots__ = ("version", "probes", "run_id")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    version: int
    probes: _containers.RepeatedCompositeFieldContainer[Probe]
    run_id: str
    def __init__(self, version: _Optional[int] = ..., probes: _Optional[_Iterable[_Union[Probe, _Mapping]]] = ..., run_id: _Optional[str] = ...) -> None: ...

class ActivatePolicyResponse(_message.Message):
    __slots__ = ("policy", "previous_version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyInfo
    previous_version: int
    def __init__(self, policy: _Optional[_Union[PolicyInfo, _Mapping]] = ..., previous_version: _Optional[int] = ...) -> None: ...

class RetirePolicyRequest(_message.Message):
    __slots__ = ("version", "run_id")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class RetirePolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyInfo
    def __init__(self, policy: _Optional[_Union[PolicyInfo, _Mapping]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("version", "run_id")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyInfo
    def __init__(self, policy: _Optional[_Union[PolicyInfo, _Mapping]] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("mode", "release")
    MODE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    mode: PauseMode
    release: bool
    def __init__(self, mode: _Optional[_Union[PauseMode, str]] = ..., release: bool = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    def __init__(self, requests: _Optional[int] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies", "capabilities", "highest_version", "active")
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyInfo]
    capabilities: Capabilities
    highest_version: int
    active: PolicyInfo
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyInfo, _Mapping]]] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., highest_version: _Optional[int] = ..., active: _Optional[_Union[PolicyInfo, _Mapping]] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("engine", "model", "logprobs", "logprob_dtype", "seeds", "token_ids", "lora", "full", "multi_version", "prefix_shared", "max_candidates", "max_tokens", "max_image_bytes", "max_image_pixels", "native_k", "scores", "params", "keeps", "picture_rule", "max_images", "max_turns", "one_image_only", "adapter_place")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_DTYPE_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    MULTI_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_SHARED_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    NATIVE_K_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    PICTURE_RULE_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TURNS_FIELD_NUMBER: _ClassVar[int]
    ONE_IMAGE_ONLY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_PLACE_FIELD_NUMBER: _ClassVar[int]
    engine: str
    model: str
    logprobs: LogprobMeaning
    logprob_dtype: str
    seeds: bool
    token_ids: bool
    lora: SwapMode
    full: SwapMode
    multi_version: bool
    prefix_shared: bool
    max_candidates: int
    max_tokens: int
    max_image_bytes: int
    max_image_pixels: int
    native_k: bool
    scores: bool
    params: _containers.RepeatedScalarFieldContainer[str]
    keeps: bool
    picture_rule: str
    max_images: int
    max_turns: int
    one_image_only: str
    adapter_place: AdapterPlace
    def __init__(self, engine: _Optional[str] = ..., model: _Optional[str] = ..., logprobs: _Optional[_Union[LogprobMeaning, str]] = ..., logprob_dtype: _Optional[str] = ..., seeds: bool = ..., token_ids: bool = ..., lora: _Optional[_Union[SwapMode, str]] = ..., full: _Optional[_Union[SwapMode, str]] = ..., multi_version: bool = ..., prefix_shared: bool = ..., max_candidates: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., native_k: bool = ..., scores: bool = ..., params: _Optional[_Iterable[str]] = ..., keeps: bool = ..., picture_rule: _Optional[str] = ..., max_images: _Optional[int] = ..., max_turns: _Optional[int] = ..., one_image_only: _Optional[str] = ..., adapter_place: _Optional[_Union[AdapterPlace, _Mapping]] = ...) -> None: ...

class AdapterPlace(_message.Message):
    __slots__ = ("module", "rows", "columns")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    module: str
    rows: int
    columns: int
    def __init__(self, module: _Optional[str] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ...) -> None: ...
