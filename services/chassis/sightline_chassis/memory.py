"""The machine's free main memory, within the container's limit."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = 8 << 30
"""Assumed free memory on a system that does not report it."""


def free_bytes(root: Path = Path("/")) -> int:
    """Free bytes of the machine's memory, and of the container's limit if there is one.

    Args:
        root: where `proc` and `sys` are.
    """
    try:
        free = _table(root / "proc/meminfo")["MemAvailable:"] << 10
    except (OSError, KeyError):
        return UNKNOWN
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        if limit != "max":  # cached file pages are dropped when memory is needed
            free = min(free, int(limit) - used + _table(group / "memory.stat")["inactive_file"])
    except (OSError, KeyError, ValueError):
        pass  # no container, or not cgroup v2
    return max(0, free)


def _table(path: Path) -> dict[str, int]:
    """Names and numbers from a file with a name and a number in each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
