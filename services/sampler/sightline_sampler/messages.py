"""From the sampler's types to what it answers, and back for what is asked of it."""

from __future__ import annotations

import dataclasses

from sightline.sampler import types
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.wire import FINISH, KIND, LOGPROBS, PAUSE, STATE, SWAP, back


def selector_of(message: pb.PolicySelector) -> types.PolicySelector | None:
    """The inverse of `selector_message`."""
    match message.WhichOneof("version"):
        case "exact":
            return types.Exact(message.exact)
        case "at_least":
            return types.AtLeast(message.at_least)
        case _:
            return None


def candidate_message(candidate: types.Candidate) -> pb.Candidate:
    """A candidate for the wire."""
    behaviour = candidate.behaviour_logprobs
    return pb.Candidate(
        index=candidate.index,
        text=candidate.text,
        token_ids=candidate.token_ids.tolist(),
        logprobs=candidate.logprobs.tolist(),
        behaviour_logprobs=behaviour.tolist() if behaviour is not None else (),
        finish_reason=FINISH[candidate.finish_reason],
        seed=candidate.seed,
        policy_version=candidate.policy_version,
    )


def arrival_message(arrival: types.Arrival) -> pb.Arrival:
    """What probes showed, for the wire."""
    return pb.Arrival(**dataclasses.asdict(arrival))


def pause_of(message: pb.PauseRequest) -> types.PauseMode:
    """The mode that a request asks for."""
    return "drain" if message.mode == pb.PAUSE_MODE_UNSPECIFIED else back(PAUSE, message.mode)


def policy_message(policy: types.PolicyInfo) -> pb.PolicyInfo:
    """A policy for the wire."""
    return pb.PolicyInfo(
        version=policy.version,
        kind=KIND[policy.kind],
        state=STATE[policy.state],
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


def capabilities_message(capabilities: types.Capabilities) -> pb.Capabilities:
    """What the engine can do, for the wire."""
    return pb.Capabilities(
        engine=capabilities.engine,
        model=capabilities.model,
        logprobs=LOGPROBS[capabilities.logprobs],
        logprob_dtype=capabilities.logprob_dtype,
        seeds=capabilities.seeds,
        token_ids=capabilities.token_ids,
        lora=SWAP[capabilities.lora],
        full=SWAP[capabilities.full],
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
