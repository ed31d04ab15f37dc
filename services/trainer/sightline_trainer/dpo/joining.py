"""Joining: image tensors of several calls of a processor as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_PLACES = "position_ids"  # in image tensors of such a name -1 is what is filled up; in all others it is 0


def join(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Image tensors of several calls of a processor as one batch, one after the other.

    Where one has fewer tiles or patches than another, it is filled up behind, as a processor fills up a batch.
    """
    joined = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        most = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        fill = -1 if name.endswith(_PLACES) else 0
        joined[name] = torch.cat([_filled(value, most, fill) for value in values])
    return joined


def _filled(value: Tensor, sizes: Sequence[int], fill: int) -> Tensor:
    missing = [size - had for size, had in zip(sizes, value.shape[1:], strict=True)]
    if not any(missing):
        return value
    behind = [part for each in reversed(missing) for part in (0, each)]
    return nn.functional.pad(value, behind, value=fill)
