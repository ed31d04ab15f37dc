"""The sampler's client, sync and async: see `sightline.base`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from sightline.base import BaseClient, Flow, Rpc
from sightline.convert import from_message
from sightline.credentials import Tls, Token
from sightline.errors import AlreadyExists, InternalError, NotFound, PermissionDenied, PreconditionFailed
from sightline.patience import TIMEOUT, Patience, Tries
from sightline.sampler import wire
from sightline.sampler.pushing import UNSEEN, Parcel
from sightline.sampler.streams import SampleOptions, sample_request
from sightline.sampler.turns import Asked, Images
from sightline.sampler.types import Distortion, PauseMode, Policies, PolicyInfo, PolicySelector, Probe, TokenScores
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc as pb_grpc

S = TypeVar("S")


class BaseSamplerClient(BaseClient):
    """Builds requests and reads answers; the client makes the calls.

    Args:
        target: see `BaseClient`, as `timeout`, `patience`, `tls` and `token`.
        run_id: the run whose policies are used by default; empty: any run's.
        swap_timeout: default deadline in seconds of stage, activate, retire and pause: they may wait for a download,
            for an engine restart, or for running candidates.
    """

    _SERVICE = "sightline_sampler.v1.SamplerService"
    _STUB = pb_grpc.SamplerServiceStub
    # Policies can be listed and changed even while the sampler cannot sample, for example while its engine restarts.
    _CONTROL = frozenset(
        {"PushPolicy", "StagePolicy", "ActivatePolicy", "RetirePolicy", "GetPolicy", "ListPolicies", "Pause", "Resume"}
    )

    def __init__(
        self,
        target: str,
        *,
        timeout: float = TIMEOUT,
        patience: Patience | None = None,
        swap_timeout: float = 1800.0,
        run_id: str = "",
        tls: Tls | None = None,
        token: str | Token | None = None,
    ) -> None:
        super().__init__(target, timeout=timeout, patience=patience, tls=tls, token=token)
        self.swap_timeout, self.run_id = swap_timeout, run_id

    def _stream(
        self,
        make: Callable[[Any, pb.SampleRequest, Tries], S],
        image: Images,
        prompt: Asked,
        n: int,
        options: SampleOptions,
    ) -> S:
        request_id = wire.checked_id(options.get("request_id") or uuid.uuid4().hex)
        request = sample_request(image, prompt, n, request_id, self.run_id, **options)

        def start(request: pb.SampleRequest, seconds: float) -> Any:
            return self._method("Sample")(request, timeout=seconds, metadata=(("x-request-id", request_id),))

        return make(start, request, self._tries(options.get("timeout")))

    def _score_tokens(
        self,
        image: Images,
        prompt: Asked,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        policy: PolicySelector | None,
        distortion: Distortion | None,
        timeout: float | None,
    ) -> Flow[TokenScores]:
        request = pb.ScoreTokensRequest(
            **wire.asked_fields(image, prompt),
            token_ids=wire.token_list(token_ids),
            policy=wire.selector_message(policy, self.run_id),
            distortion=wire.distortion_message(distortion),
        )
        return from_message((yield Rpc("ScoreTokens", request, timeout)), TokenScores)

    def _push(self, parcel: Parcel, timeout: float | None) -> Flow[str]:
        missing: list[pb.MissingFile] = []
        while True:
            ask = partial(parcel.messages, missing)
            answer = yield Rpc("PushPolicy", ask, self._swap(timeout), slow=True)
            if answer.uri:
                return str(answer.uri)
            if list(answer.missing) == missing:
                raise InternalError(
                    "none of the pushed data arrived: see the sampler's log", reason="PUSH_STANDS_STILL"
                )
            missing = list(answer.missing)

    def _deliver(
        self, path: str | os.PathLike[str], version: int, probes: Iterable[Probe], timeout: float | None
    ) -> Flow[PolicyInfo]:
        parcel, probes = Parcel(path), list(probes)
        try:
            return (yield from self._stage(path, version, probes, timeout, parcel.digest))
        except (NotFound, PermissionDenied, PreconditionFailed) as error:
            if error.reason not in UNSEEN:
                raise
        return (yield from self._stage((yield from self._push(parcel, timeout)), version, probes, timeout))

    def _stage(
        self,
        path: str | os.PathLike[str],
        version: int,
        probes: Iterable[Probe],
        timeout: float | None,
        digest: str = "",
    ) -> Flow[PolicyInfo]:
        uri = os.fspath(path)
        if "://" not in uri:
            uri = os.path.abspath(uri)  # the sampler runs in another directory
        sent = map(wire.probe_message, probes)
        request = pb.StagePolicyRequest(uri=uri, version=wire.version_number(version), probes=sent, digest=digest)
        try:
            answer = yield Rpc("StagePolicy", request, self._swap(timeout), slow=True)
            return from_message(answer.policy, PolicyInfo)
        except AlreadyExists as error:
            if "tries" not in error.metadata:
                raise
            there = yield from self._policy(version, None)
            if there.uri != uri:
                raise
            return there  # an earlier try succeeded, and its answer was lost

    def _activate(self, version: int, probes: Iterable[Probe], timeout: float | None) -> Flow[PolicyInfo]:
        sent = map(wire.probe_message, probes)
        request = pb.ActivatePolicyRequest(version=wire.version_number(version), probes=sent, run_id=self.run_id)
        return from_message((yield Rpc("ActivatePolicy", request, self._swap(timeout), slow=True)).policy, PolicyInfo)

    def _retire(self, version: int, timeout: float | None) -> Flow[PolicyInfo]:
        request = pb.RetirePolicyRequest(version=wire.version_number(version), run_id=self.run_id)
        return from_message((yield Rpc("RetirePolicy", request, self._swap(timeout), slow=True)).policy, PolicyInfo)

    def _policy(self, version: int | None, timeout: float | None) -> Flow[PolicyInfo]:
        asked = None if version is None else wire.version_number(version)
        request = pb.GetPolicyRequest(version=asked, run_id=self.run_id)
        return from_message((yield Rpc("GetPolicy", request, timeout)).policy, PolicyInfo)

    def _policies(self, timeout: float | None) -> Flow[Policies]:
        request = pb.ListPoliciesRequest(run_id=self.run_id)
        return from_message((yield Rpc("ListPolicies", request, timeout)), Policies)

    def _pause(self, mode: PauseMode, release: bool, timeout: float | None) -> Flow[int]:
        request = pb.PauseRequest(mode=wire.pause_mode(mode), release=release)
        return int((yield Rpc("Pause", request, self._swap(timeout), slow=True)).requests)

    def _resume(self, timeout: float | None) -> Flow[None]:
        yield Rpc("Resume", pb.ResumeRequest(), self._swap(timeout), slow=True)

    def _swap(self, timeout: float | None) -> float:
        return self.swap_timeout if timeout is None else timeout
