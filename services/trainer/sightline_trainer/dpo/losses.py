"""Losses by name: all losses of TRL's DPOTrainer, and POVID's in the forms of its paper and of its code.

POVID (Zhou et al. 2024, arXiv 2402.11411) has two rejected sides for a chosen one: y_t, in which a text model injected
errors, and y_n, which the policy wrote under a noised image. With r(y) = log pi(y|x) - log pi_ref(y|x):

    povid_paper   -log sigmoid(beta r(y_w) - beta1 r(y_t) - beta2 r(y_n)), y_n conditioned on the noised image
    povid_code    (DPO(y_w, y_t) + DPO(y_w, y_n)) / 2, all on the clean image: two log sigmoids, as in the code

In the released code, y_n is token by token the most likely continuation of the chosen text's prefix under the noised
image. Here it is a response sampled under the noised image, as the paper describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from sightline.errors import PreconditionFailed
from torch import Tensor
from torch.nn.functional import logsigmoid

from sightline_trainer.dpo.loss_names import OWN, loss_fault
from sightline_trainer.dpo.open_losses import open_names


def check_losses(losses: dict[str, float], *, margins: bool, weights: bool, label_smoothing: float) -> None:
    """Refuse losses that make no sense.

    Raises:
        PreconditionFailed: no loss, an unknown one, or one that does not work with margins or weights.
    """
    fault = loss_fault(
        losses, margins=margins, weights=weights, label_smoothing=label_smoothing, opened=open_names(losses)
    )
    if fault:
        raise PreconditionFailed(fault, reason="LOSS_UNUSABLE")


def trl_losses(losses: dict[str, float]) -> tuple[list[str], list[float]]:
    """TRL's own losses: POVID's code form is its sigmoid loss over both pairs; the paper's is ours."""
    names = {"povid_code": "sigmoid", "povid_paper": "sigmoid"}
    # TRL needs some loss to compute its metrics, even if only ours is used.
    ours = {"povid_paper", *OWN, *open_names(losses)}
    trl_losses = {name: weight for name, weight in losses.items() if name not in ours} or {"povid_paper": 0.0}
    return [names.get(name, name) for name in trl_losses], list(trl_losses.values())


def povid_paper(logratios: Tensor, rejected: Tensor, beta: float, betas: Sequence[float]) -> Tensor:
    """-log sigmoid(beta r_w - beta1 r_t - beta2 r_n), [B], from the unfolded batch.

    Args:
        logratios: [2 B] of the chosen sides, the second half repeating the first.
        rejected: [2 B], the first half y_t, the second y_n.
    """
    chosen, _ = logratios.chunk(2)
    injected, noised = rejected.chunk(2)
    return -logsigmoid(beta * chosen - betas[0] * injected - betas[1] * noised)


def fold_pairs(pairs: Dataset) -> tuple[Dataset, int]:
    """Pairs of one chosen side as one row with a second rejected side, for POVID.

    The second is the one whose `rejected_source` is `noised_image`, if the pairs have that column; otherwise the later
    one.

    Returns:
        The rows, and how many pairs had no partner and are left out.

    Raises:
        PreconditionFailed: no chosen side has two rejected ones.
    """
    sources = pairs["rejected_source"] if "rejected_source" in pairs.column_names else [""] * len(pairs)
    waiting: dict[Any, list[int]] = {}
    for i, (prompt, chosen) in enumerate(zip(pairs["prompt_id"], pairs["chosen_ids"], strict=True)):
        waiting.setdefault((prompt, tuple(chosen)), []).append(i)
    firsts: list[int] = []
    seconds: list[int] = []
    for rows in waiting.values():
        noised = [i for i in rows if sources[i] == "noised_image"]
        others = [i for i in rows if i not in noised]
        if not noised:
            others, noised = others[: len(others) // 2], others[len(others) // 2 :]
        for first, second in zip(others, noised, strict=False):
            firsts.append(first)
            seconds.append(second)
    if not firsts:
        raise PreconditionFailed(
            "POVID's losses need two rejected sides for a chosen one, and no pair of this iteration has a partner; "
            "make the recipe create an injected and a noised_image candidate for each prompt",
            reason="LOSS_UNUSABLE",
        )
    own = ("rejected_ids", "rejected_images", "rejected_sentences", "weight", "margin")
    sides = [name for name in own if name in pairs.column_names]
    second = pairs.select(seconds).select_columns(sides)
    second = second.rename_columns({name: f"second_{name}" for name in sides})
    return concatenate_datasets([pairs.select(firsts), second], axis=1), len(pairs) - 2 * len(firsts)


def summed(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """[B] summed log-probs of chosen and rejected sides, from [2 B, L - 1]."""
    chosen, rejected = log_probs.float().sum(dim=1).chunk(2)
    return chosen, rejected


def sft_by_pair(log_probs: Tensor, mask: Tensor) -> Tensor:
    """TRL's sft loss, the mean of -log pi over all chosen tokens of a batch, as a value of each pair: [B].

    Their mean is TRL's loss, and a pair's weight multiplies its tokens' share and nothing else.

    Args:
        log_probs: [B, L - 1] of the chosen sides.
        mask: [B, L - 1], 1 where a token is the response's.
    """
    tokens = -(log_probs.float() * mask).sum(dim=1)
    return tokens * len(mask) / mask.sum()


def weighted_mean(losses: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Mean over B pairs of weight times loss. It is not divided by the sum of weights: a weight of 2 counts as two
    pairs."""
    return (torch.stack(list(losses)) * weights).mean()
