"""The sampler's synchronous client; `sightline.sampler.aio` has the one for asyncio.

    with SamplerClient("127.0.0.1:50052") as sampler:
        samples = sampler.sample(Path("cat.jpg"), "Describe the picture.", n=8, temperature=1.0)
        for candidate in samples.candidates:
            print(candidate.text, candidate.logprobs.sum(), candidate.policy_version)
        for outcome in sampler.sample_many(pairs, n=8):  # (image, prompt) in, outcomes out, in the same order
            if isinstance(outcome, SightlineError):
                ...                                      # this pair failed; the others have their candidates
        sampler.stage("/policies/v000001", 1)
        sampler.activate(1)

Light: gRPC, protobuf, NumPy. Every call has a deadline and raises `sightline.SightlineError` subclasses:

    InvalidInput         something in the request is wrong (the message says what)
    PreconditionFailed   the requested policy is not served, or a policy cannot be staged
    NotFound             no such policy
    AlreadyExists        a policy of that version exists
    DataCorrupted        a policy's file does not match its manifest
    Overloaded           the queue was full for longer than the client's patience; retry after `retry_after` seconds
    DeadlineExceeded, Unavailable, Cancelled, InternalError

If a sampler is unavailable (a restart, a crash, an engine that died) or full, the client retries for as long as its
`Patience` allows. If a stream breaks, it requests the missing candidates, with their seeds and from the same policy
version; patience then counts from the last candidate that arrived. Each (request, index) is delivered once. If the
answer of a `stage` was lost, the retry counts the policy as staged; if that of a `retire` was lost, the retry raises
NotFound.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from sightline.base import SyncClient
from sightline.errors import SightlineError
from sightline.many import IN_FLIGHT, Live, Progress, count_of, in_order
from sightline.sampler.base import BaseSamplerClient
from sightline.sampler.many import Outcome, Pair, SampleItem, items_of
from sightline.sampler.pushing import Parcel
from sightline.sampler.streams import SampleOptions, SampleStream
from sightline.sampler.turns import Asked, Images
from sightline.sampler.types import (
    Distortion,
    PauseMode,
    Policies,
    PolicyInfo,
    PolicySelector,
    Probe,
    Samples,
    TokenScores,
)


class SamplerClient(BaseSamplerClient, SyncClient):
    """The sampler, synchronous. Thread-safe; make one per target and close it. See `BaseSamplerClient`."""

    def sample(self, image: Images, prompt: Asked, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """Draw `n` candidates for one image and prompt, for several images, or for a conversation.

        Args:
            image: encoded bytes, a file (JPEG, PNG, WebP, GIF, AVIF) or pixels (`Picture`), which are sent as PNG; a
                list of several; None for a text-only prompt, or if the messages hold their images.
            prompt: the user's text, or the messages of a conversation that ends with one (see
                `sightline.sampler.turns`); the service applies the model's chat template.
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

    def stream(self, image: Images, prompt: Asked, n: int, **options: Unpack[SampleOptions]) -> SampleStream:
        """As `sample`, but yields each candidate when it is finished."""
        return self._stream(SampleStream, image, prompt, n, options)

    def sample_many(
        self,
        pairs: Iterable[Pair],
        n: int,
        *,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[SampleOptions],
    ) -> Iterator[Outcome]:
        """Draw candidates for many images and prompts; yields in the order of `pairs`, which is read lazily.

        Each pair is sampled as by `sample`, with the same retries. Leaving the iteration cancels running calls.

        Args:
            pairs: (image, prompt) or (image, prompt, options), any number; images and prompts as for `sample`. A pair's
                options (see `PairOptions`) override the common ones.
            n: number of candidates of each pair, K, unless the pair sets it.
            max_in_flight: pairs read and not yet yielded.
            progress: called as progress(pairs yielded, total or None) before each is yielded.
            options: as for `sample`; `timeout` is for each pair, from when it is sent. A `request_id` gets the pair's
                number: "ID-0", "ID-1".

        Yields:
            Samples, or the SightlineError of that pair alone.

        Raises:
            TypeError: an unknown option.
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
            stream = self.stream(item.images, item.asked, item.n, **item.options)
            with stream, live.holding(stream.close):
                return stream.samples(list(stream))
        except SightlineError as error:
            return error

    def score_tokens(
        self,
        image: Images,
        prompt: Asked,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        *,
        policy: PolicySelector | None = None,
        distortion: Distortion | None = None,
        timeout: float | None = None,
    ) -> TokenScores:
        """Log-probability of each token of a given response under the policy (teacher forcing, temperature 1), on the
        image as it is or distorted."""
        return self._run(self._score_tokens(image, prompt, token_ids, policy, distortion, timeout))

    def stage(
        self,
        path: str | os.PathLike[str],
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,
    ) -> PolicyInfo:
        """Load and check a policy; it does not answer requests yet.

        Args:
            path: its directory, which the sampler must see under the same path, or a URL.
            version: what its manifest says.
            probes: probes for the engine. They run at once if it serves several versions, otherwise when the policy is
                activated. The result is `PolicyInfo.arrival`.
            timeout: deadline in seconds, if not the client's.

        Raises:
            PreconditionFailed: it does not fit, or (POLICY_DID_NOT_ARRIVE) the probes show that the engine does not use
                it.
            SightlineError: see the module.
        """
        return self._run(self._stage(path, version, probes, timeout))

    def push(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> str:
        """Send the files of a local policy directory that the sampler lacks; returns the path for `stage`.

        Raises:
            PreconditionFailed: the directory holds no policy, or one that is too large for the sampler.
            SightlineError: see the module.
        """
        return self._run(self._push(Parcel(path), timeout))

    def deliver(
        self,
        path: str | os.PathLike[str],
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,
    ) -> PolicyInfo:
        """Stage a local policy directory: by its path if the sampler sees the same policy there, otherwise by a push.

        Raises:
            SightlineError: as `stage` and `push`.
        """
        return self._run(self._deliver(path, version, probes, timeout))

    def activate(self, version: int, *, probes: Iterable[Probe] = (), timeout: float | None = None) -> PolicyInfo:
        """Make a staged version (or 0, the base model) the one that answers requests, if its probes show that it
        arrived.

        Raises:
            PreconditionFailed: POLICY_DID_NOT_ARRIVE; the previous version answers, and this one was freed.
            SightlineError: see the module.
        """
        return self._run(self._activate(version, probes, timeout))

    def retire(self, version: int, *, timeout: float | None = None) -> PolicyInfo:
        """Unload a version that is not active, after its running candidates are done."""
        return self._run(self._retire(version, timeout))

    def policy(self, version: int | None = None, *, timeout: float | None = None) -> PolicyInfo:
        """One policy; by default the active one."""
        return self._run(self._policy(version, timeout))

    def policies(self, *, timeout: float | None = None) -> Policies:
        """All loaded policies, and the engine's capabilities."""
        return self._run(self._policies(timeout))

    def pause(self, mode: PauseMode = "drain", *, release: bool = False, timeout: float | None = None) -> int:
        """Stop sampling until `resume`; new requests wait.

        Args:
            mode: what happens to running candidates: "drain" finishes them first, "abort" aborts them (a client
                requests the missing ones again), "keep" continues them after the pause.
            release: whether the engine also frees its memory (caches are freed, weights moved out); `resume` restores
                it, and checks that the weights are the same.
            timeout: deadline in seconds, if not the client's.

        Returns:
            The number of requests that were running.
        """
        return self._run(self._pause(mode, release, timeout))

    def resume(self, *, timeout: float | None = None) -> None:
        """End a pause."""
        self._run(self._resume(timeout))
