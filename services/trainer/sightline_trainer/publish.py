"""Publication: a new policy goes to the sampler, and proves that it arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sightline.errors import AlreadyExists, NotFound, PreconditionFailed, SightlineError
from sightline.sampler import Arrival, AsyncSamplerClient, Probe

from sightline_trainer.dpo.update import UpdateProbe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.sections import Publication
from sightline_trainer.serving import RESTORES, serve

_LOST = ("POLICY_NOT_FOUND", "PROBE_NEEDS_PREVIOUS")
"""Reasons of a sampler that was killed since it was told of the policies."""


async def publish(
    client: AsyncSamplerClient,
    directory: Path,
    *,
    version: int,
    previous: int,
    probes: Sequence[UpdateProbe],
    prompts: Mapping[str, Prompt],
    settings: Publication,
) -> Arrival:
    """Stage and activate with the probes; an old policy that is no longer needed is retired.

    The sampler itself asks its engine for what the trainer scored, under the previous and the new version, and refuses
    to answer with weights that are not the trainer's (its settings under `policies.gate`). A sampler that is killed
    in between is told everything again.

    Returns:
        What the sampler's probes showed.

    Raises:
        PreconditionFailed: the policy did not arrive, or something else publishes to the sampler. The previous version
            stays or becomes active again.
        SightlineError: the sampler refused the files; says why.
    """
    sent = [
        Probe(
            prompts[item.prompt_id].image,
            item.prompt or prompts[item.prompt_id].prompt,
            item.token_ids,
            item.logprobs,
            item.previous_logprobs,
        )
        for item in probes
    ]

    async def once() -> Arrival:
        await serve(client, previous, directory.parent)
        return await _publish(client, directory, version, previous, sent, settings)

    for _ in range(RESTORES):
        try:
            return await once()
        except SightlineError as error:
            if error.reason not in _LOST:
                raise
    return await once()


async def _publish(
    client: AsyncSamplerClient,
    directory: Path,
    version: int,
    previous: int,
    probes: Sequence[Probe],
    settings: Publication,
) -> Arrival:
    known = {policy.version for policy in (await client.policies()).policies}
    if version not in known:
        with suppress(AlreadyExists):  # an earlier try did it, and its answer was lost
            await client.stage(directory, version)
    arrival = (await client.activate(version, probes=probes)).arrival
    if arrival is None:
        raise PreconditionFailed("the sampler examined no probes", reason="POLICY_DID_NOT_ARRIVE")
    if not arrival.gap <= settings.max_probe_gap:
        await client.activate(previous)
        raise PreconditionFailed(
            f"policy {version} did not arrive at the sampler: its log-probs differ from the trainer's by "
            f"{arrival.gap:.4f} nats a token (at most {settings.max_probe_gap}, publication.max_probe_gap); version "
            f"{previous} is active again",
            reason="POLICY_DID_NOT_ARRIVE",
        )
    now = (await client.policies()).policies
    if version not in {policy.version for policy in now}:
        raise NotFound(f"the sampler has lost policy {version}", reason="POLICY_NOT_FOUND")
    active = next(policy.version for policy in now if policy.state == "active")
    if active != version:
        raise PreconditionFailed(
            f"the sampler answers with version {active} after version {version} was activated; "
            "does something else publish to it?",
            reason="POLICY_NOT_ACTIVE",
        )
    for old in sorted(v for v in known if 0 < v < version)[: -max(settings.keep - 1, 0) or None]:
        await _retire(client, old)
    return arrival


async def _retire(client: AsyncSamplerClient, version: int) -> None:
    """Have the sampler forget a version; one that it does not know, or is about to forget, is as good as forgotten."""
    try:
        await client.retire(version)
    except SightlineError as error:
        if error.reason not in ("POLICY_NOT_FOUND", "POLICY_LEAVES"):
            raise
