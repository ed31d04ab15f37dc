"""From messages to work: every limit is checked here, before an image is decoded or a model is asked."""

from __future__ import annotations

import math
import time
from typing import Any, TypeAlias

import grpc
from sightline_chassis.errors import InvalidInput

from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import SampleWork, SamplingParams, ScoreWork
from sightline_sampler.images import ImageStore
from sightline_sampler.policies import PolicyBook, PolicyLease
from sightline_sampler.settings import LimitSettings
from sightline_sampler.v1 import sampler_pb2 as pb
from sightline_sampler.wire import selector_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class RequestReader:
    """Reads requests against limits.

    Args:
        limits: what may be asked for.
        images: resolves images by digest.
        policies: gives leases.
    """

    def __init__(self, limits: LimitSettings, images: ImageStore, policies: PolicyBook) -> None:
        self._limits, self._images, self._policies = limits, images, policies

    def sample(self, request: pb.SampleRequest, context: Context) -> tuple[SampleWork, PolicyLease]:
        """The work of a Sample call, and its lease, to be released.

        Raises:
            InvalidInput: something is missing, malformed or over a limit.
            NotFound: the image named by digest is not kept.
            PreconditionFailed: the policy asked for is not served.
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
            raise InvalidInput("request_id is longer than 200 characters", reason="BAD_REQUEST_ID")
        self._check_prompt(request.prompt)
        params = self._params(request.params)
        image = self._images.resolve(request.image) if request.HasField("image") else None
        lease = self._policies.lease(selector_of(request.policy))
        chosen = list(request.seeds) or seeds.derive(request.seed, count)
        work = SampleWork(request.request_id, request.prompt, image, chosen, params, lease, _deadline(context))
        return work, lease

    def score(self, request: pb.ScoreTokensRequest, context: Context) -> tuple[ScoreWork, PolicyLease]:
        """The work of a ScoreTokens call, and its lease; raises as `sample`."""
        count = len(request.token_ids)
        if not count:
            raise InvalidInput("token_ids is empty", reason="NO_TOKENS")
        self._check_prompt(request.prompt)
        image = self._images.resolve(request.image) if request.HasField("image") else None
        lease = self._policies.lease(selector_of(request.policy))
        return ScoreWork(request.prompt, image, list(request.token_ids), lease, _deadline(context)), lease

    def _check_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise InvalidInput("the prompt is empty", reason="PROMPT_EMPTY")
        size, most = len(prompt.encode()), self._limits.max_prompt_bytes
        if size > most:
            raise InvalidInput(
                f"the prompt has {size} bytes; the limit is {most}",
                reason="PROMPT_TOO_LARGE",
                metadata={"limit_bytes": str(most)},
            )

    def _params(self, message: pb.SamplingParams) -> SamplingParams:
        temperature = message.temperature if message.HasField("temperature") else 1.0
        top_p = message.top_p if message.HasField("top_p") else 1.0
        if not (math.isfinite(temperature) and (temperature == 0 or 0.01 <= temperature <= 100)):
            raise InvalidInput(
                f"temperature is {temperature}; it must be 0 (greedy) or in 0.01..100", reason="BAD_TEMPERATURE"
            )
        if not 0 < top_p <= 1:
            raise InvalidInput(f"top_p is {top_p}; it must be in (0, 1]", reason="BAD_TOP_P")
        limit = None
        if message.HasField("max_tokens"):
            limit = message.max_tokens
            if not 1 <= limit <= self._limits.max_tokens:
                raise InvalidInput(
                    f"max_tokens is {limit}; it must be in 1..{self._limits.max_tokens}",
                    reason="BAD_MAX_TOKENS",
                    metadata={"limit": str(self._limits.max_tokens)},
                )
        return SamplingParams(temperature, top_p, message.top_k, limit)


def _deadline(context: Context) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left
