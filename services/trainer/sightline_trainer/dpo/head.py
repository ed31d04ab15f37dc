"""The head on a CPU: log-probs of the scored tokens, with the gradient of their states computed in the same pass.

TRL's head computes a tile of logits twice, forward and backward, with some ten passes over it each time where it has no
kernels; with a vocabulary of 32,000 that was a third of a step. Only log-probs have a gradient in DPO, and a token's is
linear in that of its log-prob: W[label] - sum_v p_v W[v]. So the forward pass computes this row, and the backward pass
multiplies it. Log-probs and gradients round differently than TRL's. A small vocabulary has little to gain, and goes
through TRL's head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput

LEAST_VOCABULARY = 4096
"""Rows of a head from which this one is used."""
_TILE = 4 << 20
"""Logits that are in memory at once."""


def can_score(base: Any) -> bool:
    """Whether `scored` gives what TRL's head gives for this model: a whole, frozen, plain head in float32 on a CPU,
    with a large vocabulary."""
    head, text = base.get_output_embeddings(), base.config.get_text_config()
    weight = head.weight
    plain = all(getattr(text, name, None) is None for name in _SCALES) and not torch.is_autocast_enabled("cpu")
    return (
        plain
        and type(head) is nn.Linear
        and type(weight) is nn.Parameter
        and head.out_features >= LEAST_VOCABULARY
        and weight.shape == (head.out_features, head.in_features)
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and not any(parameter.requires_grad for parameter in head.parameters())
    )


_SCALES = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
)  # fmt: skip
"""Settings of a config by which TRL's head scales logits."""


def scored(states: Tensor, head: nn.Linear, labels: Tensor) -> FusedCausalLMOutput:
    """TRL's output for tokens that all have a label.

    Args:
        states: [1, N, width] states that predict the labels.
        labels: [1, N] token ids.

    Returns:
        All per-token fields are [1, N], in nats; only `log_probs` has a gradient.
    """
    values = _Head.apply(states[0], head.weight, head.bias, labels[0])
    log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = (each[None] for each in values)
    return FusedCausalLMOutput(
        loss=-log_probs.mean(),
        log_probs=log_probs,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs,
        mean_logits=mean_logits,
        is_top1=is_top1,
        label_mask=torch.ones_like(labels, dtype=torch.bool),
    )


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, ...]:
        count = max(1, _TILE // len(weight))
        tiles = [
            _tile(some, weight, bias, asked, gradient=ctx.needs_input_grad[0])
            for some, asked in zip(states.split(count), labels.split(count), strict=True)
        ]
        *values, rows = (torch.cat(each) for each in zip(*tiles, strict=True))
        ctx.save_for_backward(rows)
        ctx.mark_non_differentiable(*values[1:])
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return grad[:, None] * rows, None, None, None


def _tile(states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, gradient: bool) -> tuple[Tensor, ...]:
    """[n] log-probs, entropies, log of the summed squared probabilities, mean logits and whether the label is the first
    of the largest; and [n, width] the gradients of the log-probs, empty if not needed."""
    logits = functional.linear(states, weight, bias)
    mean, largest = logits.mean(dim=1), logits.amax(dim=1)
    chosen = logits.gather(1, labels[:, None])[:, 0]
    is_top1 = chosen == largest
    is_top1[is_top1.clone()] = logits[is_top1].argmax(dim=1) == labels[is_top1]
    logits -= largest[:, None]
    powers = logits.exp()
    total = powers.sum(dim=1)
    log_total = total.log()
    entropy = log_total - torch.linalg.vecdot(powers, logits) / total
    log_sum_sq_probs = torch.linalg.vecdot(powers, powers).log() - 2 * log_total
    rows = states.new_empty(len(states), 0)
    if gradient:
        powers /= total[:, None]
        rows = weight[labels].addmm_(powers, weight, alpha=-1)
    return chosen - largest - log_total, entropy, log_sum_sq_probs, mean, is_top1, rows
