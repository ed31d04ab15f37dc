"""The sampler's RPCs: read a request, run it on the engine, count, answer."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import grpc
import numpy as np
from sightline.convert import to_message
from sightline.errors import SightlineError
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import Candidate, Logprobs, Policies, PolicyInfo, Summary
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc as pb_grpc
from sightline_chassis.gate import calling_limits, calling_team

from sightline_sampler import messages, metrics
from sightline_sampler.conversations import ConversationReader
from sightline_sampler.draws import choose, refuse_unsupported
from sightline_sampler.engines.base import Engine, not_finite
from sightline_sampler.policies.pushers import Pusher
from sightline_sampler.policies.questions import read_questions
from sightline_sampler.policies.received import ReceivedPolicies
from sightline_sampler.policies.registry import PolicyRegistry
from sightline_sampler.requests import RequestReader
from sightline_sampler.settings import GateSettings
from sightline_sampler.traffic import Traffic

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class SamplerServicer(pb_grpc.SamplerServiceServicer):
    """See protos/sightline_sampler/v1/sampler.proto. Errors are raised; the chassis turns them into statuses."""

    def __init__(
        self,
        engine: Engine,
        policies: PolicyRegistry,
        received: ReceivedPolicies,
        reader: RequestReader,
        *,
        conversations: ConversationReader,
        traffic: Traffic,
        gate: GateSettings,
    ) -> None:
        self._engine, self._policies, self._received, self._reader = engine, policies, received, reader
        self._conversations, self._traffic, self._gate = conversations, traffic, gate

    async def Sample(self, request: pb.SampleRequest, context: Context) -> AsyncIterator[pb.SampleResponse]:
        """Stream each candidate when it is finished, the summary last."""
        started = time.monotonic()
        work, lease = self._reader.sample(request, context)
        refuse_unsupported(work.params, self._engine)
        work, wanted = choose(request, work, self._engine)
        metrics.CANDIDATES.observe(len(wanted))
        texts: set[str] = set()
        try:
            async with self._traffic.passage() as visit, contextlib.aclosing(self._engine.sample(work)) as events:
                while (event := await visit.wait(anext(events, None))) is not None:
                    policy = self._policies.sampled_by(event.policy_version)
                    if isinstance(event, Summary):
                        yield pb.SampleResponse(summary=_summary(event, policy, time.monotonic() - started))
                    elif (index := wanted.get(event.index)) is not None:
                        _refuse_infinite(event.logprobs, policy.version)
                        _count(event, texts, started)
                        message = messages.candidate_message(event, policy)
                        message.index = index
                        yield pb.SampleResponse(candidate=message)
        finally:
            lease.release()

    async def ScoreTokens(self, request: pb.ScoreTokensRequest, context: Context) -> pb.ScoreTokensResponse:
        """Teacher-forced log-probabilities."""
        work, lease = self._reader.score(request, context)
        if work.distortion is not None:
            refuse_unsupported(SamplingParams(distortion=work.distortion), self._engine)
        try:
            async with self._traffic.passage() as visit:
                scores = await visit.wait(self._engine.score(work))
            policy = self._policies.sampled_by(scores.policy_version)
        finally:
            lease.release()
        _refuse_infinite(scores.logprobs, policy.version)
        scores = dataclasses.replace(scores, policy_version=policy.version, run_id=policy.run_id)
        return to_message(scores, pb.ScoreTokensResponse)

    async def PushPolicy(
        self, request_iterator: AsyncIterator[pb.PushPolicyRequest], context: Context
    ) -> pb.PushPolicyResponse:
        """Receive a policy's files."""
        return await self._received.receive(
            request_iterator, Pusher(calling_team(), calling_limits().pushed_policy_bytes)
        )

    async def StagePolicy(self, request: pb.StagePolicyRequest, context: Context) -> pb.StagePolicyResponse:
        """Check and load a policy."""
        with _swap("stage"):
            questions = read_questions(request.probes, self._conversations, self._gate)
            info = await self._policies.stage(
                request.uri,
                request.version,
                questions,
                request.digest,
                team=calling_team(),
                most=calling_limits().staged_policies,
            )
        metrics.POLICIES.set(len(self._policies.all()))
        return pb.StagePolicyResponse(policy=to_message(info, pb.PolicyInfo))

    async def ActivatePolicy(self, request: pb.ActivatePolicyRequest, context: Context) -> pb.ActivatePolicyResponse:
        """Make a version the one that answers."""
        with _swap("activate"):
            questions = read_questions(request.probes, self._conversations, self._gate)
            info, before = await self._policies.activate(request.version, questions, request.run_id)
        metrics.POLICY_VERSION.set(info.version)
        metrics.POLICY_LOADED.set_to_current_time()
        return pb.ActivatePolicyResponse(policy=to_message(info, pb.PolicyInfo), previous_version=before)

    async def RetirePolicy(self, request: pb.RetirePolicyRequest, context: Context) -> pb.RetirePolicyResponse:
        """Forget a version."""
        with _swap("retire"):
            info = await self._policies.retire(request.version, request.run_id)
        metrics.POLICIES.set(len(self._policies.all()))
        return pb.RetirePolicyResponse(policy=to_message(info, pb.PolicyInfo))

    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.PauseResponse:
        """Stop sampling."""
        mode = messages.pause_of(request)
        return pb.PauseResponse(requests=await self._policies.pause(mode, release=request.release))

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        """Go on."""
        await self._policies.resume()
        return pb.ResumeResponse()

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:
        """One policy."""
        info = self._policies.get(request.version if request.HasField("version") else None, request.run_id)
        return pb.GetPolicyResponse(policy=to_message(info, pb.PolicyInfo))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        """All policies, and the engine's capabilities."""
        able = dataclasses.replace(self._engine.capabilities(), picture_rule=PICTURE_RULE)
        run_id, policies = request.run_id, self._policies
        known = Policies(tuple(policies.all(run_id)), able, policies.highest(run_id), policies.active)
        return to_message(known, pb.ListPoliciesResponse)


def _count(candidate: Candidate, texts: set[str], started: float) -> None:
    if not texts:
        metrics.FIRST_TOKEN.observe(time.monotonic() - started)
    metrics.GENERATIONS.labels(candidate.finish_reason).inc()
    metrics.OUTPUT_TOKENS.observe(len(candidate.token_ids))
    metrics.TOKENS.labels("output").inc(len(candidate.token_ids))
    if candidate.text in texts:
        metrics.DUPLICATES.inc()
    texts.add(candidate.text)


def _refuse_infinite(logprobs: Logprobs, version: int) -> None:
    """Refuse non-finite numbers from any engine."""
    if not np.isfinite(logprobs).all():
        raise not_finite(version)


def _summary(summary: Summary, policy: PolicyInfo, seconds: float) -> pb.SampleSummary:
    metrics.TOKENS.labels("prompt").inc(summary.prompt_tokens)
    return pb.SampleSummary(
        prompt_tokens=summary.prompt_tokens,
        rendered_prompt=summary.rendered_prompt,
        policy_version=policy.version,
        run_id=policy.run_id,
        engine=summary.engine,
        seconds=seconds,
    )


@contextlib.contextmanager
def _swap(step: str) -> Iterator[None]:
    started = time.monotonic()
    outcome = "failed"
    try:
        yield
        outcome = "ok"
    except SightlineError:
        outcome = "refused"
        raise
    finally:
        metrics.SWAPS.labels(step, outcome).inc()
        metrics.SWAP_SECONDS.labels(step).observe(time.monotonic() - started)
