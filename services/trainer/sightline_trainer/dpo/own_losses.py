"""Own losses: losses that TRL lacks, from the same forward pass, one value per pair.

With r(y) = log pi(y | x) - log pi_ref(y | x), D = r(y_w) - r(y_l), x' the picture at `dpo.view`, b = `dpo.beta`:

    image        -log sigmoid(b (r(y_w) - r(y_w at x')))                 mDPO (Wang et al. 2024, arXiv 2406.11839), CHiP
    image_joint  -log sigmoid(b (D + r(y_w) - r(y_w at x')))             CHiP's code (arXiv 2501.16629): one log sigmoid
    anchor       -log sigmoid(b r(y_w))                                  mDPO: the chosen side's own reward should rise
    optimism     b r(y_own)                                              SELM (Zhang et al. 2024, arXiv 2405.19332)
    cdpo         -(1 - z) log sigmoid(b D) - z log sigmoid(-b D)         SPA (Kim et al., ICLR 2025, arXiv 2406.04412)
    rpo          mean over j of -log sigmoid(b w_ij (r(y_w,i) - r(y_l,j)))    RPO (Yin et al. 2024, arXiv 2402.10958)

Margins and token KLs are subtracted from D, but not from r alone. y_own is a response that the policy sampled for the
prompt: minimising SELM's term makes the policy's usual answers less likely, so that it explores; its weight is SELM's
alpha. z is 0 except for pairs that the update doubts (`doubts.py`). RPO compares each chosen side with every rejected
side of the batch, w_i. = softmax_j(-(1 - cos(e_i, e_j)) / tau): its e are embeddings of prompts; here the scorer's
embeddings of pictures, since prompts of one task are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sightline_trainer.dpo.loss_names import CHOSEN_AT_VIEW, OWN_RESPONSE


@dataclass(frozen=True)
class Sides:
    """The inputs of the losses for B pairs.

    Attributes:
        beta: strength of the tie to the reference.
        chosen, rejected: [B] log-ratios to the reference, r.
        difference: [B] D.
        extras: [B] log-ratios of the extra rows, by role.
        doubt: [B] z of cdpo.
        nearness: [B, B] w of rpo; rows sum to 1.
    """

    beta: float
    chosen: Tensor
    rejected: Tensor
    difference: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    doubt: Tensor | None = None
    nearness: Tensor | None = None


def image(sides: Sides) -> Tensor:
    """[B]; see the module."""
    return -logsigmoid(sides.beta * (sides.chosen - sides.extras[CHOSEN_AT_VIEW]))


def image_joint(sides: Sides) -> Tensor:
    """[B]; see the module."""
    return -logsigmoid(sides.beta * (sides.difference + sides.chosen - sides.extras[CHOSEN_AT_VIEW]))


def anchor(sides: Sides) -> Tensor:
    """[B]; see the module."""
    return -logsigmoid(sides.beta * sides.chosen)


def optimism(sides: Sides) -> Tensor:
    """[B]; see the module."""
    return sides.beta * sides.extras[OWN_RESPONSE]


def cdpo(sides: Sides) -> Tensor:
    """[B]; see the module."""
    assert sides.doubt is not None
    wins = sides.beta * sides.difference
    return -(1 - sides.doubt) * logsigmoid(wins) - sides.doubt * logsigmoid(-wins)


def rpo(sides: Sides) -> Tensor:
    """[B], one for each chosen side; see the module."""
    assert sides.nearness is not None
    each = sides.chosen[:, None] - sides.rejected[None, :]
    return -logsigmoid(sides.beta * sides.nearness * each).mean(dim=1)


def nearness(embeddings: Tensor, temperature: float) -> Tensor:
    """[B, B] w of rpo.

    Args:
        embeddings: [B, width], of any length above 0.
        temperature: tau.
    """
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return ((unit @ unit.T - 1) / temperature).softmax(dim=1)


OWN_LOSSES: Final[Mapping[str, Callable[[Sides], Tensor]]] = {
    "image": image,
    "image_joint": image_joint,
    "anchor": anchor,
    "optimism": optimism,
    "cdpo": cdpo,
    "rpo": rpo,
}
"""Losses by name; `loss_names.OWN` has the same names."""
