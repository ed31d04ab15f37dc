"""Changed logits: guided by a second forward pass, or penalised for repetition.

All kinds of guidance are one formula over the logits of the clean row and of its reference row, c and r:

    guided = w c + (1 - w) r

    visual contrastive decoding (VCD, arXiv 2311.16922, eq. 3): (1 + alpha) c - alpha r, so w = 1 + alpha; r sees a
        distorted image. Only ids with softmax(c) >= beta max softmax(c) remain (eq. 5), which is c >= log beta + max c.
    image-free guidance (classifier-free guidance on the picture; as in V-DPO, arXiv 2411.02712):
        gamma (c - r) + r, so w = gamma; r sees no image, or a distorted one; the cut-off is as above, if requested.
    guidance by another prompt (MARINE, arXiv 2402.08680): gamma (r - c) + c, so w = 1 - gamma; r sees the same image
        and another prompt, such as one that names the objects that were found.

One deviation: the plausibility cut-off uses the most likely id that may be sampled; otherwise an image placeholder at
the top could leave nothing to sample from.

Repetition penalty p (CTRL, arXiv 1909.05858, in transformers' form): for ids that are in the prompt or were sampled
before, a positive logit is divided by p and a negative one multiplied by it.
"""

from __future__ import annotations

import torch
from sightline.sampler.types import Contrast, Guidance, Prompted


def weights(guidance: Guidance | None) -> tuple[float, float]:
    """Weight of the clean row and plausibility cut-off: (1, 0) without guidance."""
    match guidance:
        case None:
            return 1.0, 0.0
        case Contrast(_, alpha, beta):
            return 1.0 + alpha, beta
        case Prompted(_, gamma):
            return 1.0 - gamma, 0.0
    return guidance.gamma, guidance.beta


def guide(
    clean: torch.Tensor,
    reference: torch.Tensor,
    weight: torch.Tensor,
    beta: torch.Tensor,
    suppressed: torch.Tensor,
) -> torch.Tensor:
    """The guided logits, -inf where implausible.

    Args:
        clean: (rows, vocabulary).
        reference: (rows, vocabulary), from the second forward pass.
        weight: (rows,) weight of the clean row.
        beta: (rows,) in [0, 1]; 0 keeps all.
        suppressed: ids (s,) that are never sampled.

    Returns:
        (rows, vocabulary) float64.
    """
    clean, reference = clean.double(), reference.double()
    w = weight[:, None]
    top = clean.index_fill(1, suppressed, -torch.inf).amax(dim=-1, keepdim=True)
    least = torch.log(beta)[:, None] + top  # log 0 is -inf: keeps all
    return (w * clean + (1 - w) * reference).masked_fill(clean < least, -torch.inf)


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Logits after the repetition penalty.

    Args:
        logits: (rows, vocabulary).
        seen: bool (rows, vocabulary): ids of the prompt and of sampled tokens.
        penalty: (rows,), above 0; 1 means none.
    """
    p = penalty[:, None].to(logits.dtype)
    return torch.where(seen, torch.where(logits < 0, logits * p, logits / p), logits)
