"""Visual guidance (V-DPO, Xie et al. 2024, arXiv 2411.02712): log-probs that depend on the picture count more.

    lp'_t = g lp_t(x) - (g - 1) sg lp_t(x')

with x' the picture at a view, zeros in V-DPO; the reference is not guided. V-DPO's released script sets `--gamma 0.0
--dynamic_llm`, which makes the guided log-prob a constant whose gradient is zero: here g is above 1.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

CHOSEN_BLIND: Final = "chosen_blind"
REJECTED_BLIND: Final = "rejected_blind"


def guided(log_probs: Tensor, blind: Tensor, scale: float) -> Tensor:
    """[2 B, L - 1] guided log-probs.

    Args:
        log_probs: [2 B, L - 1] under the picture.
        blind: the same rows without it; no gradient flows through them.
        scale: g.
    """
    return scale * log_probs - (scale - 1) * blind.detach()
