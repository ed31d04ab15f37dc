"""Turns messages into work: every limit is checked here, before an image is decoded or a model is used."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import grpc
from sightline.errors import InvalidInput
from sightline.sampler.types import Prompted
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_chassis.gate import calling_team

from sightline_sampler.conversations import ConversationReader
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import SampleWork, ScoreWork
from sightline_sampler.messages import selector_of
from sightline_sampler.params import read_distortion, read_params
from sightline_sampler.policies.loaded import PolicyLease
from sightline_sampler.policies.registry import PolicyRegistry
from sightline_sampler.settings import SamplerLimits

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class RequestReader:
    """Reads requests against limits.

    Args:
        limits: the limits of requests.
        conversations: reads the questions.
        policies: gives leases.
    """

    def __init__(self, limits: SamplerLimits, conversations: ConversationReader, policies: PolicyRegistry) -> None:
        self._limits, self._conversations, self._policies = limits, conversations, policies

    def sample(self, request: pb.SampleRequest, context: Context) -> tuple[SampleWork, PolicyLease]:
        """The work of a Sample call, and its lease, which the caller must release.

        Raises:
            InvalidInput: something is missing, malformed or over a limit.
            NotFound: an image named by digest is not stored.
            PreconditionFailed: the requested policy is not served.
        """
        count, most = request.num_candidates, self._limits.max_candidates
        if not 1 <= count <= most:
            raise InvalidInput(
                f"num_candidates is {count}; it must be in 1..{most}",
                reason="BAD_NUM_CANDIDATES",
                metadata={"limit": str(most)},
            )
        if len(request.seeds) not in (0, count):
            raise InvalidInput(
                f"{len(request.seeds)} seeds for {count} candidates: give one for each, or none", reason="BAD_SEEDS"
            )
        if len(request.request_id) > 200:
            raise InvalidInput("request_id is longer than 200 characters: shorten it", reason="BAD_REQUEST_ID")
        asked = self._conversations.read(request)
        limit = self._limits.max_tokens
        params = read_params(request.params, count, max_tokens=limit, with_image=bool(asked.images))
        if isinstance(params.guidance, Prompted):
            self._conversations.check_size(asked.asking(params.guidance.prompt).turns)
        lease = self._policies.lease(selector_of(request.policy))
        chosen = list(request.seeds) or seeds.derive(request.seed, count)
        asker = f"{calling_team()}/{request.policy.run_id}"
        work = SampleWork(request.request_id, asked, chosen, params, lease, _deadline(context), asker=asker)
        return work, lease

    def score(self, request: pb.ScoreTokensRequest, context: Context) -> tuple[ScoreWork, PolicyLease]:
        """The work of a ScoreTokens call, and its lease; raises as `sample`."""
        count = len(request.token_ids)
        if not count:
            raise InvalidInput("token_ids is empty: send the ids of the response", reason="NO_TOKENS")
        asked = self._conversations.read(request)
        distortion = read_distortion(request.distortion) if request.HasField("distortion") else None
        if distortion is not None and not asked.images:
            raise InvalidInput("distortion needs an image, but the request has none", reason="BAD_DISTORTION")
        lease = self._policies.lease(selector_of(request.policy))
        return ScoreWork(asked, list(request.token_ids), lease, _deadline(context), distortion), lease


def _deadline(context: Context) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left
