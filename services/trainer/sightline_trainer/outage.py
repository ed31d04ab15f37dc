"""How long the loop waits for an unavailable service."""

from __future__ import annotations

from typing import Any

from sightline.patience import Patience

OUTAGE_SECONDS = 600.0


def outliving(try_seconds: float, outage_seconds: float = OUTAGE_SECONDS) -> dict[str, Any]:
    """Arguments `timeout` and `patience` of a client that outlives an outage.

    Safe for calls that give the same answer when repeated, as all of the loop's do (candidates carry their seeds).

    Args:
        try_seconds: maximum time of one try; then the call is retried.
        outage_seconds: how long it may stay unavailable.
    """
    patience = Patience(seconds=outage_seconds, try_seconds=try_seconds)
    return {"timeout": outage_seconds + try_seconds, "patience": patience}
