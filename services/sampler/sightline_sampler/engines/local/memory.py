"""How much memory is free, for what may take as much as there is room for."""

from __future__ import annotations

from pathlib import Path

import torch
from sightline_chassis import memory


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can still be taken: of a GPU's memory, else of the machine's and of the container's, where one is set.

    Args:
        device: whose memory.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_bytes(root)
