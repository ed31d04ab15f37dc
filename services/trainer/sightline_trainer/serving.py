"""Keeps a sampler at the policy that the loop needs, even after the sampler was restarted.

A sampler that was killed comes back with the base model, or with the policy that it activated last. Its policies are in
the run directory: they are staged and activated again, and the requests are repeated. Candidates carry their seeds, so
they are the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import numpy as np
from sightline.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed
from sightline.sampler import (
    Asked,
    AsyncSamplerClient,
    Exact,
    Images,
    PolicySelector,
    Probe,
    SampleOptions,
    Samples,
    TokenScores,
    policy_dirname,
    read_manifest,
)
from sightline.sampler.types import Distortion

T = TypeVar("T")

RESTORES = 10
"""How often one call may restore a policy that the sampler lost."""


@dataclass(frozen=True)
class RunPolicies:
    """The policies of a run, and how they are sent to a sampler.

    Attributes:
        root: the directory that holds them.
        run_id: the run that the versions belong to.
        files: as a recipe's `publication.files`.
        probes: returns a version's probes, to prove it again at a sampler that lost it; None: the recorded proof
            counts.
    """

    root: Path
    run_id: str
    files: Literal["auto", "shared", "pushed"] = "auto"
    probes: Callable[[int], Sequence[Probe]] | None = None

    def directory(self, version: int) -> Path:
        """The directory of a version."""
        return self.root / policy_dirname(version)

    async def stage(self, client: AsyncSamplerClient, version: int) -> None:
        """Make the sampler load a version.

        Raises:
            SightlineError: it refuses.
        """
        directory = self.directory(version)
        if self.files == "auto":
            await client.deliver(directory, version)
        elif self.files == "shared":
            await client.stage(directory, version)
        else:
            await client.stage(await client.push(directory), version)


async def serve(client: AsyncSamplerClient, version: int, policies: RunPolicies) -> None:
    """Make sure that the sampler answers from `version`, which may not be so after a restart of either side.

    Args:
        policies: of the run.

    Raises:
        SightlineError: the sampler refuses the policy, or stays unavailable.
    """
    for left in reversed(range(RESTORES)):
        try:
            await _serve(client, version, policies)
            break
        except NotFound as error:
            if error.reason != "POLICY_NOT_FOUND" or not left:
                raise  # otherwise it was restarted after staging


async def _serve(client: AsyncSamplerClient, version: int, policies: RunPolicies) -> None:
    known = {policy.version for policy in (await client.policies()).policies}
    if version not in known:
        with suppress(AlreadyExists):  # an earlier try did it, and its answer was lost
            await policies.stage(client, version)
    if await _active(client) == version:
        return
    if version and policies.probes is not None:
        parent = (await asyncio.to_thread(read_manifest, policies.directory(version))).parent_version
        if parent and parent not in known:
            with suppress(AlreadyExists):
                await policies.stage(client, parent)
        try:
            await client.activate(version, probes=await asyncio.to_thread(policies.probes, version))
            return
        except PreconditionFailed as error:
            if error.reason != "PROBE_NEEDS_PREVIOUS":  # from an engine that holds one version at a time
                raise
    await client.activate(version)


async def _active(client: AsyncSamplerClient) -> int | None:
    """The active version of the client's run; None if there is none."""
    try:
        return (await client.policy()).version
    except NotFound:
        return None


class ServedSampler(AsyncSamplerClient):
    """A client that restores the policy to sample from if the sampler has lost it.

    Args:
        policies: the run's policies; None restores none.
        options: as for `AsyncSamplerClient`.
    """

    def __init__(self, target: str, *, policies: RunPolicies | None, **options: Any) -> None:
        super().__init__(target, run_id="" if policies is None else policies.run_id, **options)
        self._given = policies
        self._restoring = asyncio.Lock()

    async def sample(self, image: Images, prompt: Asked, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """As `AsyncSamplerClient.sample`.

        Raises:
            InvalidInput: an image cannot be read or used; the message names its file, or all images' files.
            SightlineError: as there.
        """
        ask = super().sample
        try:
            return await self._served(options.get("policy"), lambda: ask(image, prompt, n, **options))
        except InvalidInput as error:
            named = error.reason == "IMAGE_FILE_UNREADABLE"  # raised by the client, which could not read it
            shown = image if isinstance(image, list | tuple) else [image]
            files = [os.fspath(one) for one in shown if isinstance(one, str | os.PathLike)]
            if named or not error.reason.startswith("IMAGE_") or not files:
                raise
            raise InvalidInput(f"{', '.join(files)}: {error.message}", reason=error.reason) from error

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
        """As `AsyncSamplerClient.score_tokens`."""
        ask = super().score_tokens

        def call() -> Awaitable[TokenScores]:
            return ask(image, prompt, token_ids, policy=policy, distortion=distortion, timeout=timeout)

        return await self._served(policy, call)

    async def _served(self, policy: PolicySelector | None, call: Callable[[], Awaitable[T]]) -> T:
        for _ in range(RESTORES):
            if self._restoring.locked():
                async with self._restoring:  # a policy that is loaded but not proved again must not answer
                    pass
            try:
                return await call()
            except PreconditionFailed as error:
                if error.reason != "POLICY_NOT_SERVED" or self._given is None or not isinstance(policy, Exact):
                    raise
            async with self._restoring:
                await serve(self, policy.version, self._given)
        return await call()
