"""Clients of the sampler, sync and async.

    with SamplerClient("127.0.0.1:50052") as sampler:
        samples = sampler.sample(Path("cat.jpg"), "Describe the picture.", n=8, temperature=1.0)
        for candidate in samples.candidates:
            print(candidate.text, candidate.logprobs.sum(), candidate.policy_version)
        sampler.stage("/policies/v000001", 1)
        sampler.activate(1)

Light: gRPC, protobuf, NumPy. Every call has a deadline and raises `sightline_chassis.SightlineError` subclasses:

    InvalidInput         something of the request is wrong (the message says what)
    PreconditionFailed   the policy asked for is not the one served, or a policy cannot be staged
    NotFound             no such policy
    AlreadyExists        a policy of that version is there
    DataCorrupted        a policy's file is not the one of its manifest
    Overloaded           too much waits already; `retry_after` seconds
    DeadlineExceeded, Unavailable, Cancelled, InternalError

A call that fails with UNAVAILABLE before its first answer is tried again by gRPC itself: a seed gives the same
candidate again, so nothing is lost or doubled.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from sightline_chassis.channel import Tls, Token, open_aio_channel, open_channel
from sightline_chassis.errors import typed_errors

from sightline_sampler import wire
from sightline_sampler.manifest import (
    ManifestError,
    PolicyManifest,
    manifest_digest,
    model_digest,
    policy_dirname,
    read_manifest,
    verify,
    write_manifest,
)
from sightline_sampler.streams import AsyncSampleStream, Image, SampleOptions, SampleStream, sample_request
from sightline_sampler.types import (
    AtLeast,
    Beams,
    Blank,
    Blur,
    Candidate,
    Capabilities,
    Contrast,
    Crop,
    DiffusionNoise,
    Exact,
    ImageFree,
    PixelNoise,
    Policies,
    PolicyInfo,
    PolicySelector,
    Samples,
    Summary,
    TokenScores,
    at_least,
    exact,
)
from sightline_sampler.v1 import sampler_pb2 as pb
from sightline_sampler.v1 import sampler_pb2_grpc as pb_grpc

__all__ = [
    "AsyncSampleStream",
    "AsyncSamplerClient",
    "AtLeast",
    "Beams",
    "Blank",
    "Blur",
    "Candidate",
    "Capabilities",
    "Contrast",
    "Crop",
    "DiffusionNoise",
    "Exact",
    "ImageFree",
    "ManifestError",
    "PixelNoise",
    "Policies",
    "PolicyInfo",
    "PolicyManifest",
    "PolicySelector",
    "SampleOptions",
    "SampleStream",
    "SamplerClient",
    "Samples",
    "Summary",
    "TokenScores",
    "at_least",
    "exact",
    "manifest_digest",
    "model_digest",
    "policy_dirname",
    "read_manifest",
    "verify",
    "write_manifest",
]

_SERVICE = "sightline_sampler.v1.SamplerService"
# Staging and retiring are not repeated: the second try would meet what the first has done.
_RETRY = [f"{_SERVICE}/{m}" for m in ("Sample", "ScoreTokens", "ActivatePolicy", "GetPolicy", "ListPolicies")]


def _scores(response: pb.ScoreTokensResponse) -> TokenScores:
    return TokenScores(np.array(response.logprobs, dtype=np.float32), response.policy_version)


def _policies(response: pb.ListPoliciesResponse) -> Policies:
    return Policies(
        tuple(wire.policy_of(policy) for policy in response.policies), wire.capabilities_of(response.capabilities)
    )


def _uri(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(text)  # the sampler runs in another directory


def _metadata(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", request_id),)


class SamplerClient:
    """The sampler, for ordinary code. Thread-safe; make one per target and close it.

    Args:
        target: any gRPC target, for example "127.0.0.1:50052" or "dns:///sampler:50052".
        timeout: deadline in seconds of every call that names none.
    """

    def __init__(
        self, target: str, *, timeout: float = 120.0, tls: Tls | None = None, token: str | Token | None = None
    ) -> None:
        self.timeout = timeout
        self._channel = open_channel(target, tls=tls, token=token, retry=_RETRY)
        self._stub = pb_grpc.SamplerServiceStub(self._channel)

    def sample(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """Draws `n` candidates for one image and prompt.

        Args:
            image: encoded bytes or a file (JPEG, PNG, WebP, GIF); None for a text-only prompt.
            prompt: the user's text; the model's chat template is applied by the service.
            n: number of candidates, K.
            options: seeds, seed, temperature, top_p, top_k, min_p, repetition_penalty, stop, max_tokens, beams,
                distortion, guidance, policy, request_id, timeout; see `SampleOptions`.

        Returns:
            All candidates in index order.

        Raises:
            SightlineError: see the module.
        """
        with self.stream(image, prompt, n, **options) as stream:
            return stream.samples(list(stream))

    def stream(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> SampleStream:
        """As `sample`, but yields each candidate when it is finished."""
        request_id = options.get("request_id") or uuid.uuid4().hex
        request = sample_request(image, prompt, n, request_id, **options)
        timeout = options.get("timeout") or self.timeout
        return SampleStream(self._stub.Sample(request, timeout=timeout, metadata=_metadata(request_id)), request_id, n)

    def score_tokens(
        self,
        image: Image,
        prompt: str,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        *,
        policy: PolicySelector | None = None,
        timeout: float | None = None,
    ) -> TokenScores:
        """Log-probability of each token of a given response under the policy (teacher forcing, temperature 1)."""
        request = pb.ScoreTokensRequest(
            image=wire.image_message(image),
            prompt=prompt,
            token_ids=[int(token) for token in token_ids],
            policy=wire.selector_message(policy),
        )
        with typed_errors():
            return _scores(self._stub.ScoreTokens(request, timeout=timeout or self.timeout))

    def stage(self, path: str | os.PathLike[str], version: int, *, timeout: float | None = None) -> PolicyInfo:
        """Loads and checks a policy directory without answering from it; the sampler must see it under that path."""
        request = pb.StagePolicyRequest(uri=_uri(path), version=version)
        with typed_errors():
            return wire.policy_of(self._stub.StagePolicy(request, timeout=timeout or self.timeout).policy)

    def activate(self, version: int, *, timeout: float | None = None) -> PolicyInfo:
        """Makes a staged version (or 0, the base model) the one that answers."""
        request = pb.ActivatePolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of(self._stub.ActivatePolicy(request, timeout=timeout or self.timeout).policy)

    def retire(self, version: int, *, timeout: float | None = None) -> PolicyInfo:
        """Forgets a version that is not active, once its candidates under way are done."""
        request = pb.RetirePolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of(self._stub.RetirePolicy(request, timeout=timeout or self.timeout).policy)

    def policy(self, version: int | None = None, *, timeout: float | None = None) -> PolicyInfo:
        """One policy; the active one where no version is named."""
        request = pb.GetPolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of(self._stub.GetPolicy(request, timeout=timeout or self.timeout).policy)

    def policies(self, *, timeout: float | None = None) -> Policies:
        """All loaded policies, and what the engine can do."""
        with typed_errors():
            return _policies(self._stub.ListPolicies(pb.ListPoliciesRequest(), timeout=timeout or self.timeout))

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> SamplerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSamplerClient:
    """The sampler, for asyncio: the methods of `SamplerClient`. Make it inside the running event loop."""

    def __init__(
        self, target: str, *, timeout: float = 120.0, tls: Tls | None = None, token: str | Token | None = None
    ) -> None:
        self.timeout = timeout
        self._channel = open_aio_channel(target, tls=tls, token=token, retry=_RETRY)
        self._stub = pb_grpc.SamplerServiceStub(self._channel)

    async def sample(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """Draws `n` candidates for one image and prompt; see `SamplerClient.sample`."""
        async with self.stream(image, prompt, n, **options) as stream:
            return stream.samples([candidate async for candidate in stream])

    def stream(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> AsyncSampleStream:
        """As `sample`, but yields each candidate when it is finished."""
        request_id = options.get("request_id") or uuid.uuid4().hex
        request = sample_request(image, prompt, n, request_id, **options)
        timeout = options.get("timeout") or self.timeout
        call = self._stub.Sample(request, timeout=timeout, metadata=_metadata(request_id))
        return AsyncSampleStream(call, request_id, n)

    async def score_tokens(
        self,
        image: Image,
        prompt: str,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        *,
        policy: PolicySelector | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  gRPC sends it to the server
    ) -> TokenScores:
        """Log-probability of each token of a given response under the policy (teacher forcing, temperature 1)."""
        request = pb.ScoreTokensRequest(
            image=wire.image_message(image),
            prompt=prompt,
            token_ids=[int(token) for token in token_ids],
            policy=wire.selector_message(policy),
        )
        with typed_errors():
            return _scores(await self._stub.ScoreTokens(request, timeout=timeout or self.timeout))

    async def stage(self, path: str | os.PathLike[str], version: int, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """Loads and checks a policy directory without answering from it; the sampler must see it under that path."""
        request = pb.StagePolicyRequest(uri=_uri(path), version=version)
        with typed_errors():
            return wire.policy_of((await self._stub.StagePolicy(request, timeout=timeout or self.timeout)).policy)

    async def activate(self, version: int, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """Makes a staged version (or 0, the base model) the one that answers."""
        request = pb.ActivatePolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of((await self._stub.ActivatePolicy(request, timeout=timeout or self.timeout)).policy)

    async def retire(self, version: int, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """Forgets a version that is not active, once its candidates under way are done."""
        request = pb.RetirePolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of((await self._stub.RetirePolicy(request, timeout=timeout or self.timeout)).policy)

    async def policy(self, version: int | None = None, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """One policy; the active one where no version is named."""
        request = pb.GetPolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of((await self._stub.GetPolicy(request, timeout=timeout or self.timeout)).policy)

    async def policies(self, *, timeout: float | None = None) -> Policies:  # noqa: ASYNC109
        """All loaded policies, and what the engine can do."""
        with typed_errors():
            return _policies(await self._stub.ListPolicies(pb.ListPoliciesRequest(), timeout=timeout or self.timeout))

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncSamplerClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
