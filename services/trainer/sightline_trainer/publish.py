"""Publication: a new policy goes to the sampler, and proves that it arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sightline_chassis.errors import PreconditionFailed
from sightline_sampler.client import AsyncSamplerClient, exact

from sightline_trainer.dpo.update import Probe
from sightline_trainer.patience import patiently
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Publication


@dataclass(frozen=True)
class Arrival:
    """What the probes showed. Gaps are mean |log-prob differences| per token, in nats: ``gap`` between sampler and
    trainer under the new policy, ``moved`` between the sampler's new and previous policy."""

    version: int
    gap: float
    moved: float


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
    """Stage, check, activate and check again; an old policy that is no longer needed is retired.

    The sampler scores responses that the trainer scored too: under the new version they must agree, and must not be
    what the previous version says.

    Raises:
        PreconditionFailed: the sampler's log-probs are not the trainer's, or it answers with another version. The
            previous version stays or becomes active again.
        SightlineError: the sampler refused the files; says why.
    """
    known = {policy.version: policy for policy in (await patiently(client.policies)).policies}
    if version not in known:
        await patiently(lambda: client.stage(directory, version))
    gaps: list[float] = []
    moves: list[float] = []
    for item in probes:
        prompt = prompts[item.prompt_id]

        async def scores(of: int, item: Probe = item, prompt: Prompt = prompt) -> np.ndarray:
            result = await patiently(
                lambda: client.score_tokens(
                    prompt.image, item.prompt or prompt.prompt, item.token_ids, policy=exact(of)
                )
            )
            return np.asarray(result.logprobs, dtype=np.float64)

        new = await scores(version)
        gaps.extend(np.abs(new - np.asarray(item.logprobs)))
        moves.extend(np.abs(new - await scores(previous)))
    arrival = Arrival(version, float(np.mean(gaps)), float(np.mean(moves)))
    if not arrival.gap <= settings.max_probe_gap or arrival.moved == 0.0:
        raise PreconditionFailed(
            f"policy {version} did not arrive at the sampler: its log-probs differ from the trainer's by "
            f"{arrival.gap:.4f} nats a token (at most {settings.max_probe_gap}) and from the previous policy's by "
            f"{arrival.moved:.2g}; version {previous} stays active",
            reason="POLICY_DID_NOT_ARRIVE",
        )
    await patiently(lambda: client.activate(version))
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
