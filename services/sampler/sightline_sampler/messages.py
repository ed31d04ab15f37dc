"""Conversions that `sightline.convert` does not do: candidates, selectors and pauses."""

from __future__ import annotations

from typing import cast, get_args

from sightline.convert import enum_name, enum_numbers
from sightline.errors import InvalidInput
from sightline.sampler import types
from sightline.sampler.v1 import sampler_pb2 as pb

_FINISH = enum_numbers(pb.FinishReason.DESCRIPTOR)


def selector_of(message: pb.PolicySelector) -> types.PolicySelector | None:
    """The inverse of `selector_message`."""
    match message.WhichOneof("version"):
        case "exact":
            return types.Exact(message.exact, message.run_id)
        case "at_least":
            return types.AtLeast(message.at_least, message.run_id)
        case _:
            return types.ActiveOf(message.run_id) if message.run_id else None


def candidate_message(candidate: types.Candidate, policy: types.PolicyInfo) -> pb.Candidate:
    """A policy's candidate for the wire. Written by hand: behaviour log-probs may be None, and this code is hot."""
    behaviour = candidate.behaviour_logprobs
    return pb.Candidate(
        index=candidate.index,
        text=candidate.text,
        token_ids=candidate.token_ids.tolist(),
        logprobs=candidate.logprobs.tolist(),
        behaviour_logprobs=behaviour.tolist() if behaviour is not None else (),
        finish_reason=cast(pb.FinishReason, _FINISH[candidate.finish_reason]),
        seed=candidate.seed,
        policy_version=policy.version,
        run_id=policy.run_id,
    )


def pause_of(message: pb.PauseRequest) -> types.PauseMode:
    """The mode of a request. Raises InvalidInput."""
    if message.mode == pb.PAUSE_MODE_UNSPECIFIED:
        return "drain"
    mode = enum_name(pb.PauseMode.DESCRIPTOR, message.mode)
    if mode not in get_args(types.PauseMode):
        raise InvalidInput(f"{mode} is not a known pause mode: use drain, abort or keep", reason="BAD_PAUSE_MODE")
    return cast(types.PauseMode, mode)
