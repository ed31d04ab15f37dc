"""Which pairs of a batch are treated as swapped, as in SPA's self-refinement.

SPA (Kim et al., ICLR 2025, arXiv 2406.04412) smooths the labels of the pairs that the policy is least sure of: z = 0.1
for the lowest tenth of the margins, after a fifth of the steps. A batch of sixteen has no meaningful tenth, so the
bound is taken from the last thousand margins. SPA's released code has its de-coupled noise detection off by default
(denoise 1); it is not implemented here.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from sightline_trainer.dpo.method import Doubt

_KEPT = 1000
_FEW = 10
"""With fewer margins the lowest tenth is not defined."""


class Doubts:
    """z of each pair, from the margins of the update so far."""

    def __init__(self, settings: Doubt) -> None:
        self.settings = settings
        self.seen: deque[float] = deque(maxlen=_KEPT)

    def of(self, difference: Tensor, progress: float) -> Tensor:
        """[B] z of pairs with these D, which are added to the margins seen so far.

        Args:
            progress: share of the update's steps that are done.
        """
        margins = difference.detach().float()
        self.seen.extend(margins.tolist())
        if progress < self.settings.after or len(self.seen) < _FEW:
            return torch.zeros_like(margins)
        bound = torch.tensor(list(self.seen)).quantile(self.settings.share).item()
        return torch.where(margins <= bound, self.settings.value, 0.0)
