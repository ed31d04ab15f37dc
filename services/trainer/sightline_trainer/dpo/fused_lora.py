"""FusedLora: a frozen linear layer with its adapter as one function, with the additions done inside the matrix
products.

y = W x + s B A x (LoRA, arXiv 2106.09685). PEFT writes W x, A x, B A x and s B A x one after the other, adds them, and
casts the input of A to the adapter's number type: on a GPU these passes over memory take longer than the products. Here
the product that computes s B A x adds it to W x, and gradients work likewise. The sums are the same; in bfloat16 they
are rounded once instead of three times.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn import functional


class _Fused(torch.autograd.Function):
    """[..., out] of an input [..., in], a weight [out, in] with its bias, A [rank, in], B [out, rank] and s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = functional.linear(rows, weight, bias)
        low = rows @ a.to(x.dtype).T
        out.addmm_(low, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        back = (grad @ b.to(grad.dtype)) * ctx.scale
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight).addmm_(back, a.to(grad.dtype)).view(ctx.shape)
        of_a = (back.T @ rows).to(a.dtype)
        of_b = (grad.T @ low).to(b.dtype) * ctx.scale
        return of_x, None, None, of_a, of_b, None


class FusedLora(Linear):
    """PEFT's own layer; fused if it has one plain adapter on a frozen layer, otherwise as in PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, names = self.base_layer, self.active_adapters
        plain = (
            not (args or kwargs or self.disable_adapters or self.merged)
            and len(names) == 1
            and names[0] in self.lora_A
            and names[0] not in self.lora_variant
            and type(base) is nn.Linear
            and not (base.weight.requires_grad or base._forward_hooks or base._forward_pre_hooks)
            and x.dtype == base.weight.dtype == _computed_in(x)
        )
        if plain:
            a, b, dropout = (each[names[0]] for each in (self.lora_A, self.lora_B, self.lora_dropout))
            if b.bias is None and (isinstance(dropout, nn.Identity) or not dropout.training):
                fused: Tensor = _Fused.apply(x, base.weight, base.bias, a.weight, b.weight, self.scaling[names[0]])
                return fused
        found: Tensor = super().forward(x, *args, **kwargs)
        return found


def _computed_in(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def fuse(model: nn.Module) -> int:
    """Fuse every adapter on a linear layer.

    Returns:
        The number of fused adapters. Adapters on 4-bit layers, embeddings and convolutions are not changed.
    """
    found = [module for module in model.modules() if type(module) is Linear]
    for module in found:
        module.__class__ = FusedLora
    return len(found)
