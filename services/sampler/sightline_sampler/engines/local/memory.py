"""How much memory is free, for what may take as much as there is room for."""

from __future__ import annotations

from pathlib import Path

import torch

_UNKNOWN = 8 << 30  # of a system that does not tell


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can still be taken: of a GPU's memory, else of the machine's and of the container's, where one is set.

    Args:
        device: whose memory.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        facts = _table(root / "proc/meminfo")
        free = facts["MemAvailable:"] << 10
    except (OSError, KeyError):
        return _UNKNOWN
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        if limit != "max":  # pages of files that were read leave when there is need
            free = min(free, int(limit) - used + _table(group / "memory.stat")["inactive_file"])
    except (OSError, KeyError, ValueError):
        pass  # no container, or none of cgroup v2
    return max(0, free)


def _table(path: Path) -> dict[str, int]:
    """Names and numbers of a file with a name and a number in each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
