"""Whether a run's services read pictures as its update does."""

from __future__ import annotations

from sightline.errors import PreconditionFailed
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler import AsyncSamplerClient
from sightline.scorer import AsyncScorerClient


async def check_sampler(client: AsyncSamplerClient, address: str) -> None:
    """Check that a sampler reads pictures by this trainer's rule.

    Raises:
        PreconditionFailed: it uses another rule.
        SightlineError: it stays unavailable.
    """
    check_rule("sampler", address, (await client.policies()).capabilities.picture_rule)


async def check_scorer(client: AsyncScorerClient, address: str) -> None:
    """Check that a scorer reads pictures by this trainer's rule; as `check_sampler`."""
    check_rule("scorer", address, (await client.list_models()).picture_rule)


def check_rule(service: str, address: str, rule: str) -> None:
    """Check that a service's `rule` is this trainer's; as `check_sampler`."""
    if rule != PICTURE_RULE:
        theirs = f"rule {rule}" if rule else "no named rule, as Sightline 0.1.0 does"
        raise PreconditionFailed(
            f"the {service} at {address} reads pictures by {theirs}, and this trainer by rule {PICTURE_RULE}; run the "
            "same release of Sightline on both",
            reason="PICTURE_RULE_DIFFERS",
        )
