"""The sampler's client for asyncio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Unpack

import numpy as np

from sightline.base import AsyncClient
from sightline.errors import SightlineError
from sightline.many import IN_FLIGHT, Progress, count_of, in_order_async
from sightline.sampler.base import BaseSamplerClient
from sightline.sampler.many import Outcome, Pair, SampleItem, items_of
from sightline.sampler.pushing import Parcel
from sightline.sampler.streams import AsyncSampleStream, SampleOptions
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


class AsyncSamplerClient(BaseSamplerClient, AsyncClient):
    """The sampler, for asyncio: the methods of `SamplerClient`. Make it inside the running event loop."""

    async def sample(self, image: Images, prompt: Asked, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """Draw `n` candidates for one image and prompt; see `SamplerClient.sample`."""
        async with self.stream(image, prompt, n, **options) as stream:
            return stream.samples([candidate async for candidate in stream])

    def stream(self, image: Images, prompt: Asked, n: int, **options: Unpack[SampleOptions]) -> AsyncSampleStream:
        """As `sample`, but yields each candidate when it is finished."""
        return self._stream(AsyncSampleStream, image, prompt, n, options)

    def sample_many(
        self,
        pairs: Iterable[Pair],
        n: int,
        *,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[SampleOptions],
    ) -> AsyncIterator[Outcome]:
        """As `SamplerClient.sample_many`, for `async for`. A thread reads `pairs` and their files."""
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
            return await self.sample(item.images, item.asked, item.n, **item.options)
        except SightlineError as error:
            return error

    async def score_tokens(
        self,
        image: Images,
        prompt: Asked,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        *,
        policy: PolicySelector | None = None,
        distortion: Distortion | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  gRPC sends it to the server
    ) -> TokenScores:
        """Log-probability of each token of a given response under the policy (teacher forcing, temperature 1), on the
        image as it is or distorted."""
        return await self._run(self._score_tokens(image, prompt, token_ids, policy, distortion, timeout))

    async def stage(
        self,
        path: str | os.PathLike[str],
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PolicyInfo:
        """Load and check a policy; it does not answer requests yet. See `SamplerClient.stage`."""
        return await self._run(self._stage(path, version, probes, timeout))

    async def push(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """Send the files of a local policy directory that the sampler lacks; returns the path for `stage`.

        Raises:
            PreconditionFailed: the directory holds no policy, or one that is too large for the sampler.
            SightlineError: see the module.
        """
        return await self._run(self._push(Parcel(path), timeout))

    async def deliver(
        self,
        path: str | os.PathLike[str],
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PolicyInfo:
        """Stage a local policy directory: by its path if the sampler sees the same policy there, otherwise by a push.

        Raises:
            SightlineError: as `stage` and `push`.
        """
        return await self._run(self._deliver(path, version, probes, timeout))

    async def activate(
        self,
        version: int,
        *,
        probes: Iterable[Probe] = (),
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PolicyInfo:
        """Make a staged version the one that answers requests, if its probes show that it arrived; see
        `SamplerClient.activate`."""
        return await self._run(self._activate(version, probes, timeout))

    async def retire(self, version: int, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """Unload a version that is not active, after its running candidates are done."""
        return await self._run(self._retire(version, timeout))

    async def policy(self, version: int | None = None, *, timeout: float | None = None) -> PolicyInfo:  # noqa: ASYNC109
        """One policy; by default the active one."""
        return await self._run(self._policy(version, timeout))

    async def policies(self, *, timeout: float | None = None) -> Policies:  # noqa: ASYNC109
        """All loaded policies, and the engine's capabilities."""
        return await self._run(self._policies(timeout))

    async def pause(
        self,
        mode: PauseMode = "drain",
        *,
        release: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> int:
        """Stop sampling until `resume`; see `SamplerClient.pause`."""
        return await self._run(self._pause(mode, release, timeout))

    async def resume(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """End a pause."""
        await self._run(self._resume(timeout))
