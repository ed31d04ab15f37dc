"""Between the proto messages and the types of `sightline.sampler.types`, for both ends. Light."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sightline.errors import InvalidInput
from sightline.pictures import Picture, image_bytes
from sightline.sampler import types
from sightline.sampler.params import params_message
from sightline.sampler.v1 import sampler_pb2 as pb

FINISH: Mapping[types.FinishReason, pb.FinishReason] = {
    "eos": pb.FINISH_REASON_EOS,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "aborted": pb.FINISH_REASON_ABORTED,
}
KIND: Mapping[types.PolicyKind, pb.PolicyKind] = {
    "base": pb.POLICY_KIND_BASE,
    "lora": pb.POLICY_KIND_LORA,
    "merged": pb.POLICY_KIND_MERGED,
    "full": pb.POLICY_KIND_FULL,
}
STATE: Mapping[types.PolicyState, pb.PolicyState] = {
    "staged": pb.POLICY_STATE_STAGED,
    "active": pb.POLICY_STATE_ACTIVE,
    "retired": pb.POLICY_STATE_RETIRED,
}
LOGPROBS: Mapping[types.LogprobMeaning, pb.LogprobMeaning] = {
    "policy": pb.LOGPROB_MEANING_POLICY,
    "behaviour": pb.LOGPROB_MEANING_BEHAVIOUR,
    "both": pb.LOGPROB_MEANING_BOTH,
}
SWAP: Mapping[types.SwapMode, pb.SwapMode] = {
    "none": pb.SWAP_MODE_NONE,
    "restart": pb.SWAP_MODE_RESTART,
    "hot": pb.SWAP_MODE_HOT,
}

PAUSE: Mapping[types.PauseMode, pb.PauseMode] = {
    "drain": pb.PAUSE_MODE_DRAIN,
    "abort": pb.PAUSE_MODE_ABORT,
    "keep": pb.PAUSE_MODE_KEEP,
}

K = TypeVar("K")


def back(table: Mapping[K, Any], value: int) -> K:
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


def candidate_of(message: pb.Candidate) -> types.Candidate:
    """The inverse of `candidate_message`."""
    behaviour = np.array(message.behaviour_logprobs, dtype=np.float32)
    return types.Candidate(
        index=message.index,
        text=message.text,
        token_ids=np.array(message.token_ids, dtype=np.int64),
        logprobs=np.array(message.logprobs, dtype=np.float32),
        behaviour_logprobs=behaviour if len(behaviour) == len(message.token_ids) else None,
        finish_reason=back(FINISH, message.finish_reason),
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
    return pb.PauseRequest(mode=PAUSE[mode])


def policy_of(message: pb.PolicyInfo) -> types.PolicyInfo:
    """The inverse of `policy_message`."""
    return types.PolicyInfo(
        version=message.version,
        kind=back(KIND, message.kind),
        state=back(STATE, message.state),
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


def capabilities_of(message: pb.Capabilities) -> types.Capabilities:
    """The inverse of `capabilities_message`."""
    return types.Capabilities(
        engine=message.engine,
        model=message.model,
        logprobs=back(LOGPROBS, message.logprobs),
        logprob_dtype=message.logprob_dtype,
        seeds=message.seeds,
        token_ids=message.token_ids,
        lora=back(SWAP, message.lora),
        full=back(SWAP, message.full),
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
