"""Reads the log of an update's steps while the update continues."""

from __future__ import annotations

import json
from pathlib import Path

_MOST_BYTES = 4096
"""More bytes than a line has."""


def last_step(file: Path) -> dict[str, float]:
    """The numbers of the newest complete line; empty before the first."""
    try:
        with file.open("rb") as held:
            held.seek(max(0, file.stat().st_size - _MOST_BYTES))
            lines = held.read().split(b"\n")
        found = json.loads(lines[-2]) if len(lines) > 1 else {}
    except (OSError, ValueError):  # the update is just restarting
        return {}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
