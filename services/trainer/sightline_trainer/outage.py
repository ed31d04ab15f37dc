"""Outage: how long the loop waits for a service that is away."""

from __future__ import annotations

from typing import Any

from sightline.patience import Patience

OUTAGE_SECONDS = 600.0


def outliving(try_seconds: float, outage_seconds: float = OUTAGE_SECONDS) -> dict[str, Any]:
    """Arguments `timeout` and `patience` of a client that outlives an outage.

    Safe for calls that give the same answer twice, as all of the loop's do (candidates carry their seeds).

    Args:
        try_seconds: longest time of one try; a service that takes longer is asked again.
        outage_seconds: how long it may stay away.
    """
    patience = Patience(seconds=outage_seconds, try_seconds=try_seconds)
    return {"timeout": outage_seconds + try_seconds, "patience": patience}
