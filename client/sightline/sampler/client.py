"""Clients of the sampler, sync and async.

    with SamplerClient("127.0.0.1:50052") as sampler:
        samples = sampler.sample(Path("cat.jpg"), "Describe the picture.", n=8, temperature=1.0)
        for candidate in samples.candidates:
            print(candidate.text, candidate.logprobs.sum(), candidate.policy_version)
        for outcome in sampler.sample_many(pairs, n=8):  # (image, prompt) in, outcomes out, in the same order
            if isinstance(outcome, SightlineError):
                ...                                      # this pair failed; the others have their candidates
        sampler.stage("/policies/v000001", 1)
        sampler.activate(1)

Light: gRPC, protobuf, NumPy. Every call has a deadline and raises `sightline_chassis.SightlineError` subclasses:

    InvalidInput         something of the request is wrong (the message says what)
    PreconditionFailed   the policy asked for is not the one served, or a policy cannot be staged
    NotFound             no such policy
    AlreadyExists        a policy of that version is there
    DataCorrupted        a policy's file is not the one of its manifest
    Overloaded           too much waits already, still so after `patience`; `retry_after` seconds
    DeadlineExceeded, Unavailable, Cancelled, InternalError

A sampler that is away (UNAVAILABLE: a restart, a crash, an engine that died) or full, also in mid-stream, is asked
again for the candidates that are missing, with their seeds and of the same policy version, for `patience` seconds from
the last one that came: each (request, index) is delivered once.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from sightline.channel import Tls, Token, open_aio_channel, open_channel
from sightline.errors import SightlineError, typed_errors
from sightline.many import IN_FLIGHT, Live, Progress, count_of, in_order, in_order_async
from sightline.sampler import wire
from sightline.sampler.many import Outcome, Pair, SampleItem, items_of
from sightline.sampler.streams import AsyncSampleStream, Image, SampleOptions, SampleStream, sample_request
from sightline.sampler.types import (
    PauseMode,
    Policies,
    PolicyInfo,
    PolicySelector,
    Probe,
    Samples,
    TokenScores,
)
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc as pb_grpc

_SERVICE = "sightline_sampler.v1.SamplerService"
# By gRPC itself. Staging and retiring are not repeated: the second try would meet what the first has done. A stream is
# taken up again by `streams`, for what is missing.
_RETRY = [f"{_SERVICE}/{m}" for m in ("ScoreTokens", "ActivatePolicy", "GetPolicy", "ListPolicies", "Resume")]


def _scores(response: pb.ScoreTokensResponse) -> TokenScores:
    return TokenScores(np.array(response.logprobs, dtype=np.float32), response.policy_version)


def _policies(response: pb.ListPoliciesResponse) -> Policies:
    return Policies(
        tuple(wire.policy_of(policy) for policy in response.policies),
        wire.capabilities_of(response.capabilities),
        response.highest_version,
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
        timeout: deadline in seconds of every call that names none, but for those of `swap_timeout`.
        patience: seconds that a sampler which is away or full is asked again for candidates that are missing.
        swap_timeout: deadline in seconds of stage, activate, retire and pause that name none: they may wait for a
            download, for an engine that restarts, or for candidates under way.
        tls: PEM files of an encrypted channel.
        token: sent with every call.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 120.0,
        patience: float = 30.0,
        swap_timeout: float = 1800.0,
        tls: Tls | None = None,
        token: str | Token | None = None,
    ) -> None:
        self.timeout, self.patience, self.swap_timeout = timeout, patience, swap_timeout
        self._channel = open_channel(target, tls=tls, token=token, retry=_RETRY, health_service=_SERVICE)
        self._stub = pb_grpc.SamplerServiceStub(self._channel)
        # Policies are asked about and changed whether it can sample or not: a restart of its engine is such a time.
        self._control_channel = open_channel(target, tls=tls, token=token, retry=_RETRY)
        self._control = pb_grpc.SamplerServiceStub(self._control_channel)

    def sample(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """Draws `n` candidates for one image and prompt.

        Args:
            image: encoded bytes or a file (JPEG, PNG, WebP, GIF), or a picture of Pillow, which travels as PNG; None
                for a text-only prompt.
            prompt: the user's text; the model's chat template is applied by the service.
            n: number of candidates, K.
            options: seeds, seed, temperature, top_p, top_k, min_p, repetition_penalty, stop, max_tokens, beams,
                distortion, guidance, policy, request_id, timeout, patience; see `SampleOptions`.

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
        timeout, patience = options.get("timeout") or self.timeout, options.get("patience")

        def start(request: pb.SampleRequest, seconds: float) -> Any:
            return self._stub.Sample(request, timeout=seconds, metadata=_metadata(request_id))

        return SampleStream(start, request, timeout, self.patience if patience is None else patience)

    def sample_many(
        self,
        pairs: Iterable[Pair],
        n: int,
        *,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[SampleOptions],
    ) -> Iterator[Outcome]:
        """Draws candidates for many images and prompts; yields in the order of `pairs`, which is read as it is needed.

        Each pair is sampled as by `sample`, with the same retries. Whoever leaves the iteration cancels what runs.

        Args:
            pairs: (image, prompt) or (image, prompt, options), any number; options of a pair (see `PairOptions`) come
                before those of all.
            n: number of candidates of each pair, K, where the pair does not say.
            max_in_flight: pairs read and not yet yielded.
            progress: called as progress(pairs yielded, pairs in all or None) before each is yielded.
            options: as of `sample`; `timeout` is for each pair, from when it is sent. A `request_id` gets the number of
                the pair: "ID-0", "ID-1".

        Yields:
            Samples, or the SightlineError of that pair alone.

        Raises:
            TypeError: an option that there is not.
        """
        return in_order(
            items_of(pairs, n, options),
            self._sampled,
            total=count_of(pairs),
            max_in_flight=max_in_flight,
            progress=progress,
        )

    def _sampled(self, item: SampleItem, live: Live) -> Outcome:
        if item.outcome is not None:
            return item.outcome
        try:
            stream = self.stream(item.image, item.prompt, item.n, **item.options)
            with stream, live.holding(stream.close):
                return stream.samples(list(stream))
        except SightlineError as error:
            return error

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

    def stage(
        self,
        path: str | os.PathLike[str],
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,
    ) -> PolicyInfo:
        """Loads and checks a policy without answering from it.

        Args:
            path: its directory, which the sampler must see under that path, or a URL.
            version: what its manifest says.
            probes: proofs that the engine is asked for: at once where it serves versions side by side, else when the
                policy is activated. The report is `PolicyInfo.arrival`.
            timeout: deadline in seconds, if not the client's.

        Raises:
            PreconditionFailed: it does not fit, or (POLICY_DID_NOT_ARRIVE) the probes show that it is not what answers.
            SightlineError: see the module.
        """
        request = pb.StagePolicyRequest(uri=_uri(path), version=version, probes=map(wire.probe_message, probes))
        with typed_errors():
            return wire.policy_of(self._control.StagePolicy(request, timeout=timeout or self.swap_timeout).policy)

    def activate(self, version: int, *, probes: Iterable[Probe] = (), timeout: float | None = None) -> PolicyInfo:
        """Makes a staged version (or 0, the base model) the one that answers, if its probes show that it arrived.

        Raises:
            PreconditionFailed: POLICY_DID_NOT_ARRIVE; the version before answers, and this one was freed.
            SightlineError: see the module.
        """
        request = pb.ActivatePolicyRequest(version=version, probes=map(wire.probe_message, probes))
        with typed_errors():
            return wire.policy_of(self._control.ActivatePolicy(request, timeout=timeout or self.swap_timeout).policy)

    def retire(self, version: int, *, timeout: float | None = None) -> PolicyInfo:
        """Forgets a version that is not active, once its candidates under way are done."""
        request = pb.RetirePolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of(self._control.RetirePolicy(request, timeout=timeout or self.swap_timeout).policy)

    def policy(self, version: int | None = None, *, timeout: float | None = None) -> PolicyInfo:
        """One policy; the active one where no version is named."""
        request = pb.GetPolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of(self._control.GetPolicy(request, timeout=timeout or self.timeout).policy)

    def policies(self, *, timeout: float | None = None) -> Policies:
        """All loaded policies, and what the engine can do."""
        with typed_errors():
            return _policies(self._control.ListPolicies(pb.ListPoliciesRequest(), timeout=timeout or self.timeout))

    def pause(self, mode: PauseMode = "drain", *, timeout: float | None = None) -> int:
        """Stops sampling until `resume`; requests that come meanwhile wait.

        Args:
            mode: what becomes of candidates under way: "drain" finishes them first, "abort" breaks them off (a client
                asks again for what is missing), "keep" lets them go on after the pause.
            timeout: deadline in seconds, if not the client's.

        Returns:
            Requests that were under way.
        """
        with typed_errors():
            return int(self._control.Pause(wire.pause_message(mode), timeout=timeout or self.swap_timeout).requests)

    def resume(self, *, timeout: float | None = None) -> None:
        """Ends a pause."""
        with typed_errors():
            self._control.Resume(pb.ResumeRequest(), timeout=timeout or self.timeout)

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self._channel.close()
        self._control_channel.close()

    def __enter__(self) -> SamplerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSamplerClient:
    """The sampler, for asyncio: the methods of `SamplerClient`. Make it inside the running event loop."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 120.0,
        patience: float = 30.0,
        swap_timeout: float = 1800.0,
        tls: Tls | None = None,
        token: str | Token | None = None,
    ) -> None:
        self.timeout, self.patience, self.swap_timeout = timeout, patience, swap_timeout
        self._channel = open_aio_channel(target, tls=tls, token=token, retry=_RETRY, health_service=_SERVICE)
        self._stub = pb_grpc.SamplerServiceStub(self._channel)
        # Policies are asked about and changed whether it can sample or not: a restart of its engine is such a time.
        self._control_channel = open_aio_channel(target, tls=tls, token=token, retry=_RETRY)
        self._control = pb_grpc.SamplerServiceStub(self._control_channel)

    async def sample(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """Draws `n` candidates for one image and prompt; see `SamplerClient.sample`."""
        async with self.stream(image, prompt, n, **options) as stream:
            return stream.samples([candidate async for candidate in stream])

    def stream(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> AsyncSampleStream:
        """As `sample`, but yields each candidate when it is finished."""
        request_id = options.get("request_id") or uuid.uuid4().hex
        request = sample_request(image, prompt, n, request_id, **options)
        timeout, patience = options.get("timeout") or self.timeout, options.get("patience")

        def start(request: pb.SampleRequest, seconds: float) -> Any:
            return self._stub.Sample(request, timeout=seconds, metadata=_metadata(request_id))

        return AsyncSampleStream(start, request, timeout, self.patience if patience is None else patience)

    def sample_many(
        self,
        pairs: Iterable[Pair],
        n: int,
        *,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[SampleOptions],
    ) -> AsyncIterator[Outcome]:
        """As `SamplerClient.sample_many`, for `async for`. `pairs` is read, and its files are, in a thread."""
        return in_order_async(
            items_of(pairs, n, options),
            self._sampled,
            total=count_of(pairs),
            max_in_flight=max_in_flight,
            progress=progress,
        )

    async def _sampled(self, item: SampleItem) -> Outcome:
        if item.outcome is not None:
            return item.outcome
        try:
            return await self.sample(item.image, item.prompt, item.n, **item.options)
        except SightlineError as error:
            return error

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

    async def stage(
        self,
        path: str | os.PathLike[str],
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PolicyInfo:
        """Loads and checks a policy without answering from it; see `SamplerClient.stage`."""
        request = pb.StagePolicyRequest(uri=_uri(path), version=version, probes=map(wire.probe_message, probes))
        with typed_errors():
            return wire.policy_of(
                (await self._control.StagePolicy(request, timeout=timeout or self.swap_timeout)).policy
            )

    async def activate(
        self,
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PolicyInfo:
        """Makes a staged version the one that answers, if its probes show that it arrived; see
        `SamplerClient.activate`."""
        request = pb.ActivatePolicyRequest(version=version, probes=map(wire.probe_message, probes))
        with typed_errors():
            return wire.policy_of(
                (await self._control.ActivatePolicy(request, timeout=timeout or self.swap_timeout)).policy
            )

    async def retire(self, version: int, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """Forgets a version that is not active, once its candidates under way are done."""
        request = pb.RetirePolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of(
                (await self._control.RetirePolicy(request, timeout=timeout or self.swap_timeout)).policy
            )

    async def policy(self, version: int | None = None, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """One policy; the active one where no version is named."""
        request = pb.GetPolicyRequest(version=version)
        with typed_errors():
            return wire.policy_of((await self._control.GetPolicy(request, timeout=timeout or self.timeout)).policy)

    async def policies(self, *, timeout: float | None = None) -> Policies:  # noqa: ASYNC109
        """All loaded policies, and what the engine can do."""
        with typed_errors():
            asked = self._control.ListPolicies(pb.ListPoliciesRequest(), timeout=timeout or self.timeout)
            return _policies(await asked)

    async def pause(self, mode: PauseMode = "drain", *, timeout: float | None = None) -> int:  # noqa: ASYNC109
        """Stops sampling until `resume`; see `SamplerClient.pause`."""
        with typed_errors():
            return int(
                (await self._control.Pause(wire.pause_message(mode), timeout=timeout or self.swap_timeout)).requests
            )

    async def resume(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Ends a pause."""
        with typed_errors():
            await self._control.Resume(pb.ResumeRequest(), timeout=timeout or self.timeout)

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self._channel.close()
        await self._control_channel.close()

    async def __aenter__(self) -> AsyncSamplerClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
