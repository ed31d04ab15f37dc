"""Token KL (TDPO2, Zeng et al. 2024, arXiv 2404.11999; CHiP's token level): the policy's divergence per token.

    D' = D - a (K_l - sg K_w),   K = sum_t KL(pi_ref(. | x, y_<t) || pi(. | x, y_<t))   over the vocabulary

It enters through the reference: ref_w - a sg K_w and ref_l - a K_l give D'. The reference runs in each step, since its
whole distribution is needed. Logits are computed from hidden states, some hundred tokens at a time, and again for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import use_adapter

from sightline_trainer.dpo import activations
from sightline_trainer.dpo.support import base_of

_TOKENS = 256
"""Number of tokens whose logits are in memory at once."""


class Hidden:
    """Records a backbone's last output, before the head."""

    def __init__(self, base: Any) -> None:
        """Listen to a transformers model.

        Args:
            base: with its head; call this after everything else that changes its backbone's output.
        """
        self.base = base
        self.states: Tensor | None = None
        base.base_model.register_forward_hook(self._keep)

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        self.states = output.last_hidden_state

    def scored(self, mask: Tensor | None) -> Tensor:
        """[N, width] states that predict a response's tokens; those of a forward pass are returned once.

        Args:
            mask: [R, L - 1] places of such tokens in plain rows; None: the forward pass was packed and kept no others.
        """
        assert self.states is not None
        states, self.states = self.states, None
        return states[0] if mask is None else states[:, :-1][mask]

    def logits(self, states: Tensor) -> Tensor:
        """[N, vocabulary] in float32."""
        head: nn.Module = self.base.get_output_embeddings()
        text = self.base.config.get_text_config()
        logits: Tensor = head(states).float() * float(getattr(text, "logit_scale", None) or 1.0)
        cap = getattr(text, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def token_kl(policy: Hidden, reference: Hidden, states: Tensor, known: Tensor) -> Tensor:
    """[N] KL(reference || policy) of each scored token, with a gradient through the policy.

    Args:
        states, known: [N, width] hidden states of the policy and of the reference, which has no gradient.
    """

    def some(own: Tensor, other: Tensor) -> Tensor:
        ours, theirs = policy.logits(own).log_softmax(-1), reference.logits(other).log_softmax(-1)
        kl: Tensor = (theirs.exp() * (theirs - ours)).sum(-1)
        return kl

    run: Callable[..., Any] = checkpoint
    parts = zip(states.split(_TOKENS), known.split(_TOKENS), strict=True)
    return torch.cat([run(some, own, other, use_reentrant=False) for own, other in parts])


class TokenKl:
    """K of both sides of a batch's pairs, times a.

    Attributes:
        alpha: a.
    """

    def __init__(self, alpha: float, policy: Any, reference: Any | None) -> None:
        """Listen to both.

        Args:
            policy: a transformers model, inside PEFT or not.
            reference: likewise; None: the policy with its adapter off.
        """
        self.alpha = alpha
        self.policy = Hidden(base_of(policy))
        self.reference = self.policy if reference is None else Hidden(base_of(reference))

    def of(self, trainer: Any, recorder: Any) -> tuple[Tensor, Tensor]:
        """a K_w and a K_l, [B] each, with their gradients.

        Args:
            trainer: its reference runs on the same rows.
            recorder: the policy's; the policy runs here if it has not yet.
        """
        recorder()
        inputs, rows = recorder.inputs, recorder.rows
        pack = inputs.get("shared_prefix")
        mask = None if pack is not None else inputs["labels"][:, 1:] != -100
        states = self.policy.scored(mask)
        with (
            torch.no_grad(),
            activations.kept(trainer.model, trainer.args.activation_checkpointing_kwargs),
            nullcontext() if trainer.ref_model is not None else use_adapter(_unwrapped(trainer), adapter_name=None),
        ):
            (trainer.ref_model or trainer.model)(**inputs)
        values = token_kl(self.policy, self.reference, states, self.reference.scored(mask))
        by_place = pack.spread(values[None]) if mask is None else _spread(values, mask)
        chosen, rejected = (self.alpha * by_place[:rows].sum(dim=1)).chunk(2)
        return chosen, rejected


def _unwrapped(trainer: Any) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values of scored tokens in plain rows' layout, zero elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
