"""Free memory, for caches that may use all of it."""

from __future__ import annotations

from pathlib import Path

import torch
from sightline_chassis import memory


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Free bytes: of a GPU's memory, otherwise of the machine's, within the container's limit if there is one.

    Args:
        device: the device.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_bytes(root)
