"""Serving: keep a sampler at the policy that the loop needs, whatever became of the sampler meanwhile.

A sampler that was killed comes back with the base model, or with the policy that it activated last. Its policies are
in the run directory: they are staged and activated again, and what was asked is asked again. Candidates carry their
seeds, so they are the same ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
from sightline.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed
from sightline.sampler import (
    AsyncSamplerClient,
    Exact,
    Image,
    PolicySelector,
    SampleOptions,
    Samples,
    TokenScores,
    policy_dirname,
)

T = TypeVar("T")

RESTORES = 10
"""How often one call outlives a sampler that lost the policy."""


async def serve(client: AsyncSamplerClient, version: int, policies: Path) -> None:
    """Make sure that the sampler answers from `version`: after a restart of either side it may not.

    Args:
        policies: directory of the run's policies.

    Raises:
        SightlineError: the sampler refuses the policy, or stays away.
    """
    for left in reversed(range(RESTORES)):
        try:
            await _serve(client, version, policies)
            break
        except NotFound as error:
            if error.reason != "POLICY_NOT_FOUND" or not left:
                raise  # otherwise it was killed after it had staged


async def _serve(client: AsyncSamplerClient, version: int, policies: Path) -> None:
    known = {policy.version for policy in (await client.policies()).policies}
    if version not in known:
        with suppress(AlreadyExists):  # an earlier try did it, and its answer was lost
            await client.stage(policies / policy_dirname(version), version)
    if (await client.policy()).version != version:
        await client.activate(version)


class ServedSampler(AsyncSamplerClient):
    """A client that brings back the policy it is asked to sample from, where the sampler has lost it.

    Args:
        policies: directory of the run's policies; None brings nothing back.
        options: as of `AsyncSamplerClient`.
    """

    def __init__(self, target: str, *, policies: Path | None, **options: Any) -> None:
        super().__init__(target, **options)
        self._directory = policies
        self._restoring = asyncio.Lock()

    async def sample(self, image: Image, prompt: str, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """As `AsyncSamplerClient.sample`.

        Raises:
            InvalidInput: the image cannot be read or used; the message names its file.
            SightlineError: as there.
        """
        ask = super().sample
        try:
            return await self._served(options.get("policy"), lambda: ask(image, prompt, n, **options))
        except InvalidInput as error:
            named = error.reason == "IMAGE_FILE_UNREADABLE"  # by the client, which could not read it
            if named or not error.reason.startswith("IMAGE_") or not isinstance(image, str | os.PathLike):
                raise
            raise InvalidInput(f"{os.fspath(image)}: {error.message}", reason=error.reason) from error

    async def score_tokens(
        self,
        image: Image,
        prompt: str,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        *,
        policy: PolicySelector | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  gRPC sends it to the server
    ) -> TokenScores:
        """As `AsyncSamplerClient.score_tokens`."""
        ask = super().score_tokens
        return await self._served(policy, lambda: ask(image, prompt, token_ids, policy=policy, timeout=timeout))

    async def _served(self, policy: PolicySelector | None, call: Callable[[], Awaitable[T]]) -> T:
        for _ in range(RESTORES):
            try:
                return await call()
            except PreconditionFailed as error:
                if error.reason != "POLICY_NOT_SERVED" or self._directory is None or not isinstance(policy, Exact):
                    raise
            async with self._restoring:
                await serve(self, policy.version, self._directory)
        return await call()
