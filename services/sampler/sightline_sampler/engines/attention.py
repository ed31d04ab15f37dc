"""Attention whose result for a row does not depend on the other rows of the batch, for a CPU.

A candidate must not change with K or with what else is in the batch. Multiplying (rows, in) by (in, out) gives each
row the same bits whatever the number of rows, from four rows on (measured with MKL in fp32, up to 9000 rows; fewer go
another way, so the engine never runs fewer). PyTorch's fused CPU kernel does not keep to that with two threads, and its
result depends on the padded length unless that is a multiple of 32; batched matrix products and a softmax do keep to
it, and are faster here for one query per row (256 rows, 4 heads of 32, 96 slots, one core: 0.96 against 1.37 ms).

On a GPU, products of other shapes take other kernels: there the engine uses PyTorch's fused kernel, and equal ids
across batch shapes are likely rather than sure.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "sightline_rowwise"
# What some architectures ask of attention and this one does not do; the engine then keeps the architecture's own.
_UNKNOWN = ("softcap", "position_bias", "s_aux", "cache")


def rowwise_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q k^T * scaling + mask) v, with grouped key/value heads not copied.

    Args:
        query: (batch, heads, queries, dim).
        key: (batch, key_value_heads, slots, dim).
        value: (batch, key_value_heads, slots, dim).
        attention_mask: additive, (batch, 1, queries, at least slots), or None for full attention.

    Returns:
        (batch, queries, heads, dim), and no weights.
    """
    if dropout or any(kwargs.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError(f"{NAME} attention does not do dropout or any of {', '.join(_UNKNOWN)}")
    batch, heads, queries, dim = query.shape
    groups, slots = key.shape[1], key.shape[2]
    query = query * (scaling if scaling is not None else dim**-0.5)
    if groups != heads:
        query = query.reshape(batch, groups, heads // groups * queries, dim)
    weights = torch.matmul(query, key.transpose(2, 3)).view(batch, heads, queries, slots)
    if attention_mask is not None:
        weights = weights + attention_mask[..., :slots]
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(value.dtype)
    if groups != heads:
        weights = weights.view(batch, groups, heads // groups * queries, slots)
    out = torch.matmul(weights, value).view(batch, heads, queries, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Makes the attention known to transformers under `NAME`."""
    AttentionInterface.register(NAME, rowwise_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
