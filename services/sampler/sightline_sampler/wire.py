"""Between the proto messages and the types of `sightline_sampler.types`, for both ends. Light."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from sightline_chassis.errors import InvalidInput
from sightline_chassis.pictures import Picture, image_bytes

from sightline_sampler import types
from sightline_sampler.params import params_message
from sightline_sampler.v1 import sampler_pb2 as pb

_FINISH: Mapping[types.FinishReason, pb.FinishReason] = {
    "eos": pb.FINISH_REASON_EOS,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "aborted": pb.FINISH_REASON_ABORTED,
}
_KIND: Mapping[types.PolicyKind, pb.PolicyKind] = {
    "base": pb.POLICY_KIND_BASE,
    "lora": pb.POLICY_KIND_LORA,
    "merged": pb.POLICY_KIND_MERGED,
    "full": pb.POLICY_KIND_FULL,
}
_STATE: Mapping[types.PolicyState, pb.PolicyState] = {
    "staged": pb.POLICY_STATE_STAGED,
    "active": pb.POLICY_STATE_ACTIVE,
    "retired": pb.POLICY_STATE_RETIRED,
}
_LOGPROBS: Mapping[types.LogprobMeaning, pb.LogprobMeaning] = {
    "policy": pb.LOGPROB_MEANING_POLICY,
    "behaviour": pb.LOGPROB_MEANING_BEHAVIOUR,
    "both": pb.LOGPROB_MEANING_BOTH,
}
_SWAP: Mapping[types.SwapMode, pb.SwapMode] = {
    "none": pb.SWAP_MODE_NONE,
    "restart": pb.SWAP_MODE_RESTART,
    "hot": pb.SWAP_MODE_HOT,
}

_PAUSE: Mapping[types.PauseMode, pb.PauseMode] = {
    "drain": pb.PAUSE_MODE_DRAIN,
    "abort": pb.PAUSE_MODE_ABORT,
    "keep": pb.PAUSE_MODE_KEEP,
}

K = TypeVar("K")


def _back(table: Mapping[K, Any], value: int) -> K:
    for key, number in table.items():
        if number == value:
            return key
    raise ValueError(f"the server sent an enum value that this client does not know: {value}")


def image_content(image: Picture | None) -> bytes | None:
    """The encoded file of an image; None for a text-only prompt. Raises InvalidInput."""
    if image is None:
        return None
    if isinstance(image, list | tuple):
        raise InvalidInput(f"{len(image)} images: a request takes one, or none", reason="TOO_MANY_IMAGES")
    return image_bytes(image)


def image_message(image: Picture | None) -> pb.Image | None:
    """An image from its bytes, its file or a picture of Pillow; None for a text-only prompt. Raises InvalidInput."""
    content = image_content(image)
    return None if content is None else pb.Image(content=content)


def digest_message(content: bytes) -> pb.Image:
    """Names an image that was sent before by its SHA-256."""
    return pb.Image(sha256=hashlib.sha256(content).digest())


def selector_message(policy: types.PolicySelector | None) -> pb.PolicySelector | None:
    """Which policy must answer; None means the active one."""
    match policy:
        case None:
            return None
        case types.Exact(version):
            return pb.PolicySelector(exact=version)
        case types.AtLeast(version):
            return pb.PolicySelector(at_least=version)


def selector_of(message: pb.PolicySelector) -> types.PolicySelector | None:
    """The inverse of `selector_message`."""
    match message.WhichOneof("version"):
        case "exact":
            return types.Exact(message.exact)
        case "at_least":
            return types.AtLeast(message.at_least)
        case _:
            return None


def sample_request(
    image: Picture | None,
    prompt: str,
    n: int,
    *,
    seeds: Sequence[int] | None,
    seed: int,
    policy: types.PolicySelector | None,
    request_id: str,
    **params: Any,
) -> pb.SampleRequest:
    """Builds the request; `params` go to `params_message`. Raises InvalidInput for what does not fit its fields."""
    try:
        return pb.SampleRequest(
            request_id=request_id,
            image=image_message(image),
            prompt=prompt,
            num_candidates=n,
            seeds=seeds or (),
            seed=seed,
            params=params_message(**params),
            policy=selector_message(policy),
        )
    except (ValueError, TypeError) as error:  # out of range or of the wrong type
        raise InvalidInput(f"the request cannot be built: {error}") from None


def candidate_message(candidate: types.Candidate) -> pb.Candidate:
    """A candidate for the wire."""
    behaviour = candidate.behaviour_logprobs
    return pb.Candidate(
        index=candidate.index,
        text=candidate.text,
        token_ids=candidate.token_ids.tolist(),
        logprobs=candidate.logprobs.tolist(),
        behaviour_logprobs=behaviour.tolist() if behaviour is not None else (),
        finish_reason=_FINISH[candidate.finish_reason],
        seed=candidate.seed,
        policy_version=candidate.policy_version,
    )


def candidate_of(message: pb.Candidate) -> types.Candidate:
    """The inverse of `candidate_message`."""
    behaviour = np.array(message.behaviour_logprobs, dtype=np.float32)
    return types.Candidate(
        index=message.index,
        text=message.text,
        token_ids=np.array(message.token_ids, dtype=np.int64),
        logprobs=np.array(message.logprobs, dtype=np.float32),
        behaviour_logprobs=behaviour if len(behaviour) == len(message.token_ids) else None,
        finish_reason=_back(_FINISH, message.finish_reason),
        seed=message.seed,
        policy_version=message.policy_version,
    )


def summary_of(message: pb.SampleSummary) -> types.Summary:
    """The summary of a request."""
    return types.Summary(
        prompt_tokens=message.prompt_tokens,
        rendered_prompt=message.rendered_prompt,
        policy_version=message.policy_version,
        engine=message.engine,
        seconds=message.seconds,
    )


def probe_message(probe: types.Probe) -> pb.Probe:
    """A probe for the wire."""
    return pb.Probe(
        image=image_message(probe.image),
        prompt=probe.prompt,
        token_ids=[int(token) for token in probe.token_ids],
        logprobs=[float(value) for value in probe.logprobs],
        previous_logprobs=[float(value) for value in probe.previous_logprobs],
    )


def arrival_message(arrival: types.Arrival) -> pb.Arrival:
    """What probes showed, for the wire."""
    return pb.Arrival(**dataclasses.asdict(arrival))


def arrival_of(message: pb.Arrival) -> types.Arrival:
    """The inverse of `arrival_message`."""
    values = {
        field.name: getattr(message, field.name)
        if not message.DESCRIPTOR.fields_by_name[field.name].has_presence or message.HasField(field.name)
        else None
        for field in dataclasses.fields(types.Arrival)
    }
    return types.Arrival(**values)


def pause_message(mode: types.PauseMode) -> pb.PauseRequest:
    """Asks for a pause."""
    return pb.PauseRequest(mode=_PAUSE[mode])


def pause_of(message: pb.PauseRequest) -> types.PauseMode:
    """The mode that a request asks for."""
    return "drain" if message.mode == pb.PAUSE_MODE_UNSPECIFIED else _back(_PAUSE, message.mode)


def policy_message(policy: types.PolicyInfo) -> pb.PolicyInfo:
    """A policy for the wire."""
    return pb.PolicyInfo(
        version=policy.version,
        kind=_KIND[policy.kind],
        state=_STATE[policy.state],
        digest=policy.digest,
        base_digest=policy.base_digest,
        parent_version=policy.parent_version,
        uri=policy.uri,
        run_id=policy.run_id,
        iteration=policy.iteration,
        tensors=policy.tensors,
        changed_modules=policy.changed_modules,
        arrival=arrival_message(policy.arrival) if policy.arrival is not None else None,
    )


def policy_of(message: pb.PolicyInfo) -> types.PolicyInfo:
    """The inverse of `policy_message`."""
    return types.PolicyInfo(
        version=message.version,
        kind=_back(_KIND, message.kind),
        state=_back(_STATE, message.state),
        digest=message.digest,
        base_digest=message.base_digest,
        parent_version=message.parent_version,
        uri=message.uri,
        run_id=message.run_id,
        iteration=message.iteration,
        tensors=message.tensors,
        changed_modules=message.changed_modules,
        arrival=arrival_of(message.arrival) if message.HasField("arrival") else None,
    )


def capabilities_message(capabilities: types.Capabilities) -> pb.Capabilities:
    """What the engine can do, for the wire."""
    return pb.Capabilities(
        engine=capabilities.engine,
        model=capabilities.model,
        logprobs=_LOGPROBS[capabilities.logprobs],
        logprob_dtype=capabilities.logprob_dtype,
        seeds=capabilities.seeds,
        token_ids=capabilities.token_ids,
        lora=_SWAP[capabilities.lora],
        full=_SWAP[capabilities.full],
        multi_version=capabilities.multi_version,
        prefix_shared=capabilities.prefix_shared,
        max_candidates=capabilities.max_candidates,
        max_tokens=capabilities.max_tokens,
        max_image_bytes=capabilities.max_image_bytes,
        max_image_pixels=capabilities.max_image_pixels,
        native_k=capabilities.native_k,
        scores=capabilities.scores,
        params=sorted(capabilities.params),
        keeps=capabilities.keeps,
    )


def capabilities_of(message: pb.Capabilities) -> types.Capabilities:
    """The inverse of `capabilities_message`."""
    return types.Capabilities(
        engine=message.engine,
        model=message.model,
        logprobs=_back(_LOGPROBS, message.logprobs),
        logprob_dtype=message.logprob_dtype,
        seeds=message.seeds,
        token_ids=message.token_ids,
        lora=_back(_SWAP, message.lora),
        full=_back(_SWAP, message.full),
        multi_version=message.multi_version,
        prefix_shared=message.prefix_shared,
        max_candidates=message.max_candidates,
        max_tokens=message.max_tokens,
        max_image_bytes=message.max_image_bytes,
        max_image_pixels=message.max_image_pixels,
        native_k=message.native_k,
        scores=message.scores,
        params=frozenset(message.params),
        keeps=message.keeps,
    )
