"""Policies staged and retired by tries whose answers were lost: nothing is repeated without a check."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_server import abort, listening
from sightline.errors import AlreadyExists, NotFound, SightlineError, Unavailable
from sightline.patience import ONCE, Patience
from sightline.sampler import AsyncSamplerClient, PolicyInfo, SamplerClient
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc

NAME = "sightline_sampler.v1.SamplerService"
FAST = Patience(first_delay=0.01, max_delay=0.02)


class Scripted(sampler_pb2_grpc.SamplerServiceServicer):
    """Knows one policy at a time; performs calls, but loses the answers of as many as the test orders."""

    def __init__(self) -> None:
        self.lost = 0
        self.policy: pb.PolicyInfo | None = None
        self.calls: list[str] = []

    def _answer(self, context: Any) -> None:
        if self.lost:
            self.lost -= 1
            abort(context, Unavailable("Socket closed"))

    def StagePolicy(self, request: pb.StagePolicyRequest, context: Any) -> pb.StagePolicyResponse:
        self.calls.append("stage")
        if self.policy is not None:
            abort(context, AlreadyExists("there", reason="POLICY_EXISTS"))
        self.policy = pb.PolicyInfo(version=request.version, uri=request.uri, kind=2, state=1)  # type: ignore[arg-type]
        self._answer(context)
        return pb.StagePolicyResponse(policy=self.policy)

    def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(policy=self.policy)

    def RetirePolicy(self, request: pb.RetirePolicyRequest, context: Any) -> pb.RetirePolicyResponse:
        self.calls.append("retire")
        if self.policy is None:
            abort(context, NotFound("gone", reason="POLICY_NOT_FOUND"))
        self.policy = None
        self._answer(context)
        return pb.RetirePolicyResponse()


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    scripted = Scripted()
    with listening(sampler_pb2_grpc.add_SamplerServiceServicer_to_server, scripted, NAME) as target:
        yield scripted, target


def staged(kind: str, target: str, path: str, patience: Patience = FAST) -> PolicyInfo:
    async def run() -> PolicyInfo:
        async with AsyncSamplerClient(target, patience=patience) as client:
            return await client.stage(path, 3)

    if kind == "async":
        return asyncio.run(run())
    with SamplerClient(target, patience=patience) as client:
        return client.stage(path, 3)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stage_whose_answer_was_lost_counts(there: tuple[Scripted, str], kind: str) -> None:
    there[0].lost = 1
    policy = staged(kind, there[1], "/policies/v000003")
    assert (policy.version, policy.kind, policy.state, policy.uri) == (3, "lora", "staged", "/policies/v000003")
    assert there[0].calls == ["stage", "stage"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_others_staged_is_refused(there: tuple[Scripted, str], kind: str) -> None:
    staged(kind, there[1], "/others/v000003")
    with pytest.raises(AlreadyExists):
        staged(kind, there[1], "/policies/v000003")
    assert there[0].calls == ["stage", "stage"]


def test_nobody_is_asked_again_where_no_patience_is(there: tuple[Scripted, str]) -> None:
    there[0].lost = 1
    with pytest.raises(Unavailable):
        staged("sync", there[1], "/policies/v000003", ONCE)
    assert there[0].calls == ["stage"]


def test_a_retirement_whose_answer_was_lost_finds_nothing(there: tuple[Scripted, str]) -> None:
    staged("sync", there[1], "/policies/v000003")
    there[0].lost = 1
    with SamplerClient(there[1], patience=FAST) as client, pytest.raises(SightlineError) as caught:
        client.retire(3)
    assert caught.value.reason == "POLICY_NOT_FOUND"
    assert there[0].policy is None
