"""Arguments and results of the sampler's clients: frozen types, arrays as NumPy. Light."""

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
    """Exactly this version; of this run, or of the only run that has it."""

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
    """Ask for exactly this version; PreconditionFailed if it is not loaded, or if several runs have it and none is
    named."""
    return Exact(version, run_id)


def at_least(version: int, run_id: str = "") -> AtLeast:
    """Ask for the active version, if it is not older than this; otherwise PreconditionFailed, which names what is
    served."""
    return AtLeast(version, run_id)


def active_of(run_id: str) -> ActiveOf:
    """Ask for the version that a run activated last; PreconditionFailed if it has no active version."""
    return ActiveOf(run_id)


@dataclasses.dataclass(frozen=True, slots=True)
class DiffusionNoise:
    """Gaussian noise on the normalised pixels, as after `step` (0..999) steps of a diffusion; one seed gives one
    picture."""

    step: int
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PixelNoise:
    """The same noise on pixels in [0, 1], as in POVID's code; `official`: values wrap around as there, otherwise they
    are clamped."""

    step: int
    seed: int = 0
    official: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur; `radius` is the standard deviation in pixels of the image as sent."""

    radius: float


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """A random part of the image with `min_area`..`max_area` of its area, enlarged to the size of the whole."""

    min_area: float = 0.01
    max_area: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Blank:
    """All normalised pixels are 0: the mean colour."""


Distortion: TypeAlias = DiffusionNoise | PixelNoise | Blur | Crop | Blank
"""How the image is distorted before the model sees it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contrast:
    """Visual contrastive decoding: (1 + alpha) * clean - alpha * distorted, among tokens with at least `beta` times the
    most likely token's clean probability."""

    distortion: Distortion = DiffusionNoise(500)
    alpha: float = 1.0
    beta: float = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFree:
    """Guidance towards the image: gamma * (clean - reference) + reference. The reference has no image, or a distorted
    one. Only tokens with at least `beta` times the most likely token's clean probability; 0 keeps all."""

    gamma: float = 1.5
    distortion: Distortion | None = None
    beta: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Prompted:
    """Guidance by another prompt on the same image (MARINE): gamma * (prompted - clean) + clean."""

    prompt: str
    gamma: float = 0.7


Guidance: TypeAlias = Contrast | ImageFree | Prompted
"""A second forward pass that changes the logits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Beams:
    """Diverse group beam search: the K candidates are the beams, in `groups` groups that avoid each other's tokens.

    Attributes:
        groups: K must be a multiple of it; CSR uses K groups.
        diversity_penalty: subtracted from a token's score for each beam of an earlier group that chose it at the same
            step.
        length_penalty: scores of finished beams are divided by their length to this power.
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
        logprobs: log-probability of each token (n,) under the policy: temperature 1, over the whole vocabulary, without
            truncation, penalty, guidance or suppression. Teacher forcing on the same image gives the same. Empty (0,)
            if the engine does not provide it: see `Capabilities.logprobs`.
        behaviour_logprobs: log-probability of each token (n,) under the distribution that it was sampled from; None if
            the engine does not provide it.
        finish_reason: "eos", "length" (max_tokens), "stop" or "aborted".
        seed: gives this candidate again, for any K and any other requests in the batch.
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
    """Facts about all candidates of a request.

    Attributes:
        prompt_tokens: number of the prompt's tokens as the model saw it, image tokens included.
        rendered_prompt: the prompt after the chat template; image placeholders are not expanded.
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
    """All candidates of a request, in index order, with facts about all of them (see `Summary`)."""

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
        image: one image or several, as for `sample`; None for a text-only prompt.
        prompt: the user's text, or the messages of a conversation.
        token_ids: the response (n,), the end token included if it counts.
        logprobs: the trainer's log-probability of each token (n,) under the new policy, in nats.
        previous_logprobs: the same under the policy that it was trained from; empty if unknown, and then the change
            cannot be compared.
    """

    image: Images
    prompt: Asked
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    previous_logprobs: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """The result of a policy's probes: whether its weights arrived. Means are over all probe tokens, in nats.

    Attributes:
        passed: whether the policy may answer.
        reason: why not; empty if it passed.
        previous_version: what the new version was compared with.
        probes: number of responses.
        tokens: number of their tokens.
        changed: share of tokens whose log-probability differs, in any bit, from the engine's under the previous policy.
        correlation: between the engine's change and the trainer's; None if unknown.
        required_correlation: the correlation that was required.
        gap: mean |engine - trainer| under the new policy.
        previous_gap: the same under the previous policy; None if the trainer did not send it.
        moved: mean |new - previous| in the engine.
        trainer_moved: mean |new - previous| in the trainer; None if it did not send it.
        sampled_gap: mean |log-probability when sampled - when scored| of candidates sampled from the new policy; None
            if there were none.
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
        kind: the kind of its files.
        state: staged (loaded and checked), active (answers requests that name its run and no version) or retired.
        digest: SHA-256 of its manifest; for version 0, of the base model's weights. Hexadecimal.
        base_digest: SHA-256 of the base model's weights.
        parent_version: the version it was trained from.
        uri: where its files are.
        run_id: the run that made it.
        iteration: the iteration that made it.
        tensors: number of its tensors.
        changed_modules: number of modules that it changes, as far as the engine compared them; 0 if it did not.
        arrival: the result of its probes; None for a policy without probes.
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
    """A linear layer of the language model that an adapter may change: its name as in an adapter's tensor names, and
    the numbers of its outputs and inputs."""

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
    """Version of the sampler's rule for reading pictures; empty before 0.2.0."""
    max_images: int = 0
    """Maximum images of one request; 0 before 0.2.0, which takes one."""
    max_turns: int = 0
    """Maximum turns of one request; 0 before 0.2.0, which takes one."""
    one_image_only: str = ""
    """Why `max_images` is 1 regardless of the limits; otherwise empty."""
    adapter_place: AdapterPlace | None = None
    """A layer that an adapter may change; None if unknown."""


@dataclasses.dataclass(frozen=True, slots=True)
class Policies:
    """All loaded policies, oldest version first, and what the engine can do."""

    policies: tuple[PolicyInfo, ...]
    capabilities: Capabilities
    highest_version: int
    """The highest version ever staged at the sampler for the named run, loaded or not; a new one must be higher."""
    active: PolicyInfo
    """The policy that answers requests that name neither run nor version."""
