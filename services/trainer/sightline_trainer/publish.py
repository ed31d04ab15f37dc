"""Publication: a new policy goes to the sampler, and proves that it arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline_chassis.errors import PreconditionFailed
from sightline_sampler.client import AsyncSamplerClient
from sightline_sampler.client import Probe as SamplerProbe

from sightline_trainer.dpo.update import Probe
from sightline_trainer.patience import patiently
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Publication


@dataclass(frozen=True)
class Arrival:
    """What the sampler's probes showed, in nats a token: mean |difference| between sampler and trainer under the new
    policy (``gap``), between the sampler's new and previous policy (``moved``), and the correlation of that change with
    the trainer's (0 where it could not be told)."""

    version: int
    gap: float
    moved: float
    correlation: float


async def publish(
    client: AsyncSamplerClient,
    directory: Path,
    *,
    version: int,
    previous: int,
    probes: Sequence[Probe],
    prompts: Mapping[str, Prompt],
    settings: Publication,
) -> Arrival:
    """Stage and activate with the probes; an old policy that is no longer needed is retired.

    The sampler itself asks its engine for what the trainer scored, under the previous and the new version, and refuses
    to answer with weights that are not the trainer's (its settings under ``policies.gate``).

    Raises:
        PreconditionFailed: the policy did not arrive, or something else publishes to the sampler. The previous version
            stays or becomes active again.
        SightlineError: the sampler refused the files; says why.
    """
    known = {policy.version: policy for policy in (await patiently(client.policies)).policies}
    if version not in known:
        await patiently(lambda: client.stage(directory, version))
    sent = [
        SamplerProbe(
            prompts[item.prompt_id].image,
            item.prompt or prompts[item.prompt_id].prompt,
            item.token_ids,
            item.logprobs,
            item.previous_logprobs,
        )
        for item in probes
    ]
    shown = (await patiently(lambda: client.activate(version, probes=sent))).arrival
    if shown is None:
        raise PreconditionFailed("the sampler examined no probes", reason="POLICY_DID_NOT_ARRIVE")
    arrival = Arrival(version, shown.gap, shown.moved, shown.correlation or 0.0)
    if not arrival.gap <= settings.max_probe_gap:
        await patiently(lambda: client.activate(previous))
        raise PreconditionFailed(
            f"policy {version} did not arrive at the sampler: its log-probs differ from the trainer's by "
            f"{arrival.gap:.4f} nats a token (at most {settings.max_probe_gap}, publication.max_probe_gap); version "
            f"{previous} is active again",
            reason="POLICY_DID_NOT_ARRIVE",
        )
    active = await patiently(client.policy)
    if active.version != version:
        raise PreconditionFailed(
            f"the sampler answers with version {active.version} after version {version} was activated; "
            "does something else publish to it?",
            reason="POLICY_NOT_ACTIVE",
        )
    for old in sorted(v for v in known if 0 < v < version)[: -max(settings.keep - 1, 0) or None]:
        await patiently(lambda old=old: client.retire(old))  # type: ignore[misc]
    return arrival
