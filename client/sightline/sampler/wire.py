"""Conversions that `sightline.convert` does not do: requests from callers' arguments, selectors, candidates. Light."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from sightline.convert import enum_name, enum_numbers, to_message
from sightline.errors import InvalidInput
from sightline.pictures import image_bytes
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import Asked, Images, conversation, plain
from sightline.sampler.types import (
    ActiveOf,
    AtLeast,
    Candidate,
    Distortion,
    Exact,
    FinishReason,
    PolicySelector,
    Probe,
)
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.texts import checked_text

_FINISH = pb.FinishReason.DESCRIPTOR
_ROLES = enum_numbers(pb.Role.DESCRIPTOR)
_PAUSES = enum_numbers(pb.PauseMode.DESCRIPTOR)


def read_images(images: Images, asked: Asked) -> tuple[list[bytes], Asked]:
    """The images of a call, read, and the turns: as `conversation` returns them. Raises InvalidInput."""
    pictures, turns = conversation(images, asked)
    return [image_bytes(picture) for picture in pictures], asked if isinstance(asked, str) else turns


def asked_fields(images: Images, asked: Asked) -> dict[str, Any]:
    """The request's fields for a conversation: `turns`, or for one image and text `image` and `prompt`, which services
    before 0.2.0 know too. Raises InvalidInput."""
    pictures, turns = conversation(images, asked)
    for number, turn in enumerate(turns):
        where = "the prompt" if len(turns) == 1 else f"turns[{number}]"
        for part in turn.content:
            if part is not None:
                checked_text(part, where)
    held = [pb.Image(content=image_bytes(picture)) for picture in pictures]
    if (prompt := plain(turns)) is not None:
        return {"prompt": prompt, **({"image": held[0]} if held else {})}
    rest = iter(held)
    return {
        "turns": [
            pb.Turn(
                role=_ROLES[turn.role],  # type: ignore[arg-type]
                parts=[
                    pb.TurnPart(image=next(rest)) if part is None else pb.TurnPart(text=part) for part in turn.content
                ],
            )
            for turn in turns
        ]
    }


def token_list(token_ids: Iterable[Any]) -> list[int]:
    """Token ids for the wire. Raises InvalidInput."""
    try:
        found = [_whole(token) for token in token_ids]
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"token_ids are not a list of whole numbers: {error}", reason="BAD_TOKEN_ID") from None
    if not all(0 <= token < 1 << 31 for token in found):
        raise InvalidInput("token_ids are below 0, or above 2147483647", reason="BAD_TOKEN_ID")
    return found


def _whole(number: Any) -> int:
    """A whole number, also of NumPy and as a float such as 5.0. Raises TypeError."""
    if isinstance(number, float | np.floating) and float(number).is_integer():
        return int(number)
    return operator.index(number)


def selector_message(policy: PolicySelector | None, run_id: str = "") -> pb.PolicySelector | None:
    """Which policy must answer; None means the active one, of `run_id` if it is given. Raises InvalidInput."""
    match policy:
        case None:
            return pb.PolicySelector(run_id=run_id) if run_id else None
        case Exact(version, run):
            return pb.PolicySelector(exact=version_number(version), run_id=run or run_id)
        case AtLeast(version, run):
            return pb.PolicySelector(at_least=version_number(version), run_id=run or run_id)
        case ActiveOf(run):
            return pb.PolicySelector(run_id=run)
        case _:
            raise InvalidInput(
                f"policy is {policy!r}, not exact(VERSION), at_least(VERSION), active_of(RUN) or None",
                reason="POLICY_MALFORMED",
            )


def checked_id(request_id: object) -> str:
    """The id of a request, which travels in a header. Raises InvalidInput."""
    if not isinstance(request_id, str) or not re.fullmatch(r"[!-~]{1,200}", request_id, re.ASCII):
        raise InvalidInput(
            f"request_id is {str(request_id)[:80]!a}: give at most 200 visible ASCII characters, without spaces",
            reason="BAD_REQUEST_ID",
        )
    return request_id


def version_number(version: Any) -> int:
    """A policy's version for the wire. Raises InvalidInput."""
    try:
        found = _whole(version)
    except TypeError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise InvalidInput(
            f"the policy's version is {version!r}, not a whole number from 0 on", reason="POLICY_MALFORMED"
        )
    return found


def pause_mode(mode: object) -> Any:
    """How running candidates end in a pause, for the wire. Raises InvalidInput."""
    if not isinstance(mode, str) or mode not in _PAUSES:
        raise InvalidInput(f"mode is {mode!r}: one of {', '.join(_PAUSES)}", reason="MODE_UNKNOWN")
    return _PAUSES[mode]


def distortion_message(distortion: Distortion | None) -> pb.Distortion | None:
    """How an image is distorted; None if it is not. Raises InvalidInput."""
    try:
        whole = to_message(SamplingParams(distortion=distortion), pb.SamplingParams)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the distortion cannot be sent: {error}", reason="MALFORMED_REQUEST") from None
    return whole.distortion if whole.HasField("distortion") else None


def sample_request(
    image: Images,
    prompt: Asked,
    n: int,
    *,
    seeds: Sequence[int] | None,
    seed: int,
    policy: pb.PolicySelector | None,
    request_id: str,
    **params: Any,
) -> pb.SampleRequest:
    """Build the request; `params` are those of `SamplingParams`. Raises InvalidInput if a value does not fit its
    field."""
    try:
        return pb.SampleRequest(
            request_id=request_id,
            **asked_fields(image, prompt),
            num_candidates=n,
            seeds=() if seeds is None else [_whole(each) for each in seeds],
            seed=seed,
            params=to_message(SamplingParams(**params), pb.SamplingParams),
            policy=policy,
        )
    except (ValueError, TypeError) as error:  # out of range or of the wrong type
        raise InvalidInput(f"the request cannot be built: {error}", reason="MALFORMED_REQUEST") from None


def candidate_of(message: pb.Candidate) -> Candidate:
    """A candidate from the wire. Written by hand: missing behaviour log-probs become None, and this code is hot."""
    behaviour = np.array(message.behaviour_logprobs, dtype=np.float32)
    return Candidate(
        index=message.index,
        text=message.text,
        token_ids=np.array(message.token_ids, dtype=np.int64),
        logprobs=np.array(message.logprobs, dtype=np.float32),
        behaviour_logprobs=behaviour if len(behaviour) == len(message.token_ids) else None,
        finish_reason=cast(FinishReason, enum_name(_FINISH, message.finish_reason)),
        seed=message.seed,
        policy_version=message.policy_version,
        run_id=message.run_id,
    )


def probe_message(probe: Probe) -> pb.Probe:
    """A probe for the wire."""
    return pb.Probe(
        **asked_fields(probe.image, probe.prompt),
        token_ids=token_list(probe.token_ids),
        logprobs=[float(value) for value in probe.logprobs],
        previous_logprobs=[float(value) for value in probe.previous_logprobs],
    )
