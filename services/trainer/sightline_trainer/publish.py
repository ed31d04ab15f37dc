"""Publication: sends a new policy to the sampler, which proves that it arrived."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from sightline.errors import AlreadyExists, NotFound, PreconditionFailed, SightlineError
from sightline.sampler import Arrival, AsyncSamplerClient, Probe
from sightline.sampler.manifest import manifest_digest, read_arrival, write_arrival

from sightline_trainer.dpo.probing import UpdateProbe
from sightline_trainer.fleet import Fleet
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.sections import Publication
from sightline_trainer.serving import RESTORES, RunPolicies, serve

_MOST_BYTES = 48 << 20
"""Maximum bytes of all probes' images: a message may have 64 MiB (server.max_message_mib)."""
_LOST = ("POLICY_NOT_FOUND", "PROBE_NEEDS_PREVIOUS")
"""Reasons from a sampler that was restarted and lost the policies."""


async def publish(
    client: AsyncSamplerClient,
    policies: RunPolicies,
    *,
    version: int,
    previous: int,
    probes: Sequence[UpdateProbe],
    prompts: Mapping[str, Prompt],
    settings: Publication,
) -> Arrival:
    """Stage and activate with the probes, at every sampler of a fleet; retire an old policy that is not needed.

    The sampler lets its engine score the trainer's probes under the previous and the new version, and refuses to answer
    with weights that are not the trainer's (its settings under `policies.gate`). If a sampler is killed in between,
    everything is repeated.

    Returns:
        The result of the sampler's probes; for a fleet, the worst one.

    Raises:
        PreconditionFailed: the policy did not arrive, or something else publishes to the sampler. The previous version
            stays or becomes active again.
        SightlineError: the sampler refused the files; the message says why.
    """
    sent = sendable(probes, prompts)

    async def to(one: AsyncSamplerClient) -> Arrival:
        for left in reversed(range(RESTORES)):
            try:
                await serve(one, previous, policies)
                return await _publish(one, policies, version, previous, sent, settings)
            except SightlineError as error:
                if error.reason not in _LOST or not left:
                    raise
        raise AssertionError("a try returns or raises")

    if not isinstance(client, Fleet):
        return await to(client)
    arrivals = await client.each(to, f"take policy {version}", settings.deadline_seconds)
    return max(arrivals.values(), key=lambda arrival: arrival.gap)


def sendable(probes: Sequence[UpdateProbe], prompts: Mapping[str, Prompt]) -> list[Probe]:
    """Probes of an update, for the wire."""
    return [
        Probe(
            prompts[item.prompt_id].images,
            prompts[item.prompt_id].asked(item.prompt or None),
            item.token_ids,
            item.logprobs,
            item.previous_logprobs,
        )
        for item in _fitting(probes, prompts)
    ]


def _fitting(probes: Sequence[UpdateProbe], prompts: Mapping[str, Prompt]) -> Iterator[UpdateProbe]:
    """The first probes, as many as fit into one message with their images."""
    size = 0
    for number, probe in enumerate(probes):
        with suppress(OSError):  # the client names the missing file
            size += sum(image.stat().st_size for image in prompts[probe.prompt_id].images)
        if number and size > _MOST_BYTES:
            return
        yield probe


async def _publish(
    client: AsyncSamplerClient,
    policies: RunPolicies,
    version: int,
    previous: int,
    probes: Sequence[Probe],
    settings: Publication,
) -> Arrival:
    known = {policy.version for policy in (await client.policies()).policies}
    if version not in known:
        with suppress(AlreadyExists):  # an earlier try did it, and its answer was lost
            await policies.stage(client, version)
    arrival = (await client.activate(version, probes=probes)).arrival
    if arrival is None:
        raise PreconditionFailed(
            f"the sampler activated policy {version} without examining the probes: install the trainer's release of "
            "Sightline on the sampler",
            reason="POLICY_DID_NOT_ARRIVE",
        )
    if not arrival.gap <= settings.max_probe_gap:
        await client.activate(previous)
        raise PreconditionFailed(
            f"policy {version} did not arrive at the sampler: its log-probs differ from the trainer's by "
            f"{arrival.gap:.4f} nats a token (at most {settings.max_probe_gap}, publication.max_probe_gap); version "
            f"{previous} is active again",
            reason="POLICY_DID_NOT_ARRIVE",
        )
    await to_thread(_keep, policies.directory(version), version, arrival)
    now = (await client.policies()).policies
    if version not in {policy.version for policy in now}:
        raise NotFound(f"the sampler has lost policy {version}", reason="POLICY_NOT_FOUND")
    active = (await client.policy()).version
    if active != version:
        raise PreconditionFailed(
            f"the sampler answers with version {active} after version {version} was activated; "
            "does something else publish to it?",
            reason="POLICY_NOT_ACTIVE",
        )
    for old in sorted(v for v in known if 0 < v < version)[: -max(settings.keep - 1, 0) or None]:
        await _retire(client, old)
    return arrival


def _keep(directory: Path, version: int, arrival: Arrival) -> None:
    """Write the proof beside the policy, as a sampler that sees the directory does, so that it can be sent again with
    the policy."""
    digest = manifest_digest(directory)
    if (read_arrival(directory) or {}).get("digest") != digest:
        write_arrival(directory, {"policy_version": version, "digest": digest, **asdict(arrival)})


async def _retire(client: AsyncSamplerClient, version: int) -> None:
    """Retire a version at the sampler; an unknown one, or one being retired, needs no action."""
    try:
        await client.retire(version)
    except SightlineError as error:
        if error.reason not in ("POLICY_NOT_FOUND", "POLICY_LEAVES"):
            raise
