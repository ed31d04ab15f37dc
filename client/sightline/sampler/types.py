"""What the sampler's clients give and get: frozen types, arrays as NumPy. Light."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sightline.sampler.turns import Asked, Images

FinishReason = Literal["eos", "stop", "length", "aborted"]
PolicyState = Literal["staged", "active", "retired"]
PolicyKind = Literal["base", "lora", "merged", "full"]
LogprobMeaning = Literal["policy", "behaviour", "both"]
SwapMode = Literal["none", "restart", "hot"]
PauseMode = Literal["drain", "abort", "keep"]

TokenIds: TypeAlias = npt.NDArray[np.int64]
Logprobs: TypeAlias = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Exact:
    """This version and no other; of this run, or of whichever run has it alone."""

    version: int
    run_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class AtLeast:
    """The active version, if it is not older than this; of this run, or the one activated last."""

    version: int
    run_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ActiveOf:
    """The active version of this run."""

    run_id: str


PolicySelector: TypeAlias = Exact | AtLeast | ActiveOf


def exact(version: int, run_id: str = "") -> Exact:
    """Ask for this version and no other; PreconditionFailed where it is not loaded, or where several runs have it and
    none is named."""
    return Exact(version, run_id)


def at_least(version: int, run_id: str = "") -> AtLeast:
    """Ask for the active version, if it is not older than this; else PreconditionFailed, naming what is served."""
    return AtLeast(version, run_id)


def active_of(run_id: str) -> ActiveOf:
    """Ask for what a run activated last; PreconditionFailed where nothing of it is active."""
    return ActiveOf(run_id)


@dataclasses.dataclass(frozen=True, slots=True)
class DiffusionNoise:
    """Gaussian noise on the normalised pixels, as after `step` (0..999) steps of a diffusion; a seed, a picture."""

    step: int
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PixelNoise:
    """The same noise on pixels in [0, 1], as in POVID's code; `official`: values wrap around as there, else clamped."""

    step: int
    seed: int = 0
    official: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur; `radius` is the standard deviation in pixels of the image as sent."""

    radius: float


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """A random part of the image with a share of its area in `min_area`..`max_area`, enlarged to the whole's size."""

    min_area: float = 0.01
    max_area: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Blank:
    """All normalised pixels 0: the mean colour."""


Distortion: TypeAlias = DiffusionNoise | PixelNoise | Blur | Crop | Blank
"""What is done to the image before the model sees it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contrast:
    """Visual contrastive decoding: (1 + alpha) * clean - alpha * distorted, among tokens of at least `beta` times the
    likeliest token's clean probability."""

    distortion: Distortion = DiffusionNoise(500)
    alpha: float = 1.0
    beta: float = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFree:
    """Guidance towards the image: gamma * (clean - reference) + reference. The reference has no image, or a distorted
    one. Among tokens of at least `beta` times the likeliest token's clean probability; 0 keeps all."""

    gamma: float = 1.5
    distortion: Distortion | None = None
    beta: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Prompted:
    """Guidance by another prompt on the same image (MARINE): gamma * (prompted - clean) + clean."""

    prompt: str
    gamma: float = 0.7


Guidance: TypeAlias = Contrast | ImageFree | Prompted
"""A second forward that changes the logits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Beams:
    """Diverse group beam search: the K candidates are the beams, in `groups` groups that avoid each other's tokens.

    Attributes:
        groups: K must be a multiple; as many as K is what CSR does.
        diversity_penalty: taken from a token's score for each beam of an earlier group that took it at the same step.
        length_penalty: scores of ended beams are divided by length to this power.
    """

    groups: int
    diversity_penalty: float = 1.0
    length_penalty: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One sampled response.

    Attributes:
        index: position among the K candidates.
        text: the text without special tokens.
        token_ids: sampled ids (n,), the end token included where it was sampled.
        logprobs: log-probability of each token (n,) under the policy: temperature 1, nothing truncated, penalised,
            guided or suppressed, over the whole vocabulary; what teacher forcing gives on the same image. Empty (0,)
            where the engine cannot tell: see `Capabilities.logprobs`.
        behaviour_logprobs: log-probability of each token (n,) under the distribution that it was drawn from; None
            where the engine cannot tell.
        finish_reason: "eos", "length" (max_tokens), "stop" or "aborted".
        seed: gives this candidate again, whatever K and whatever else is in the batch.
        policy_version: the version that sampled each of its tokens.
        run_id: the run that made that policy; empty for the base model.
    """

    index: int
    text: str
    token_ids: TokenIds
    logprobs: Logprobs
    behaviour_logprobs: Logprobs | None
    finish_reason: FinishReason
    seed: int
    policy_version: int
    run_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What held for all candidates of a request.

    Attributes:
        prompt_tokens: tokens of the prompt as the model saw it, image tokens included.
        rendered_prompt: the prompt after the chat template, image placeholder not expanded.
        policy_version: the version that sampled.
        engine: the engine's name and version.
        seconds: from admission to the last candidate, by the server's clock.
        run_id: the run that made the policy; empty for the base model.
    """

    prompt_tokens: int
    rendered_prompt: str
    policy_version: int
    engine: str = ""
    seconds: float = 0.0
    run_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """All candidates of a request, in index order, with what held for all of them (see `Summary`)."""

    candidates: tuple[Candidate, ...]
    prompt_tokens: int
    rendered_prompt: str
    policy_version: int
    engine: str
    seconds: float
    request_id: str
    run_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Log-probability of each token of a given response (n,) under the policy; that policy's version and run."""

    logprobs: Logprobs
    policy_version: int
    run_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A response that the trainer scored, so that the sampler can prove that its weights are the trainer's.

    Attributes:
        image: an image or several, as of `sample`; None for a text-only prompt.
        prompt: the user's text, or the messages of a conversation.
        token_ids: the response (n,), the end token included if it counts.
        logprobs: the trainer's log-probability of each token (n,) under the new policy, in nats.
        previous_logprobs: the same under the policy it was trained from; empty if it is not known, and then the
            change cannot be compared.
    """

    image: Images
    prompt: Asked
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    previous_logprobs: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """What the probes of a policy showed: whether its weights arrived. Numbers are over all probe tokens, in nats.

    Attributes:
        passed: whether the policy may answer.
        reason: why not; empty if it passed.
        previous_version: what the new version was compared with.
        probes: number of responses.
        tokens: number of their tokens.
        changed: share of tokens whose log-probability differs, in any bit, from the engine's under the previous policy.
        correlation: between the engine's change and the trainer's; None if it is unknown.
        required_correlation: the least that was asked for.
        gap: mean |engine - trainer| under the new policy.
        previous_gap: the same under the previous policy; None if the trainer did not send it.
        moved: mean |new - previous| of the engine.
        trainer_moved: mean |new - previous| of the trainer; None if it did not send it.
        sampled_gap: mean |log-probability when sampled - when scored| of candidates drawn from the new policy; None
            where none was drawn.
        engine: its name and version.
    """

    passed: bool
    reason: str
    previous_version: int
    probes: int
    tokens: int
    changed: float
    correlation: float | None
    required_correlation: float
    gap: float
    previous_gap: float | None
    moved: float
    trainer_moved: float | None
    sampled_gap: float | None
    engine: str


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy as the sampler knows it.

    Attributes:
        version: 0 is the base model.
        kind: what its files are.
        state: staged (loaded and checked), active (answers requests that name its run and no version) or retired.
        digest: SHA-256 of its manifest; of version 0, of the base model's weights. Hexadecimal.
        base_digest: SHA-256 of the base model's weights.
        parent_version: the version it was trained from.
        uri: where its files lie.
        run_id: the run that made it.
        iteration: the iteration that made it.
        tensors: number of tensors that it brings.
        changed_modules: modules that it changes, as far as the engine compared them; 0 if it did not.
        arrival: what its probes showed; None for a policy that came without any.
    """

    version: int
    kind: PolicyKind
    state: PolicyState
    digest: str
    base_digest: str
    parent_version: int = 0
    uri: str = ""
    run_id: str = ""
    iteration: int = 0
    tensors: int = 0
    changed_modules: int = 0
    arrival: Arrival | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterPlace:
    """A linear layer of the language model that an adapter may change: its name, as an adapter's tensors have it, its
    outputs and its inputs."""

    module: str
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; see the fields of the proto message of the same name."""

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
    native_k: bool = False
    scores: bool = False
    params: frozenset[str] = frozenset()
    keeps: bool = False
    picture_rule: str = ""
    """Version of the rule by which the sampler reads pictures; empty before 0.2.0."""
    max_images: int = 0
    """Most images of one request; 0 before 0.2.0, which takes one."""
    max_turns: int = 0
    """Most turns of one request; 0 before 0.2.0, which takes one."""
    one_image_only: str = ""
    """Why `max_images` is 1 whatever the limits say; empty if it is not so."""
    adapter_place: AdapterPlace | None = None
    """A layer that an adapter may change; None if it is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Policies:
    """All loaded policies, oldest version first, and what the engine can do."""

    policies: tuple[PolicyInfo, ...]
    capabilities: Capabilities
    highest_version: int
    """The highest one ever staged at the sampler of the run asked for, loaded or not; a new one must be higher."""
    active: PolicyInfo
    """The policy that answers requests that name neither run nor version."""
