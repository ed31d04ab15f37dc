"""Attention whose result for a row does not depend on the other rows of the batch.

A candidate must not change with K or with the rest of the batch. Multiplying (rows, in) by (in, out) gives each row the
same bits for any number of rows from four on (measured with MKL in fp32, up to 9000 rows; fewer use another kernel, so
the engine never runs fewer: `stems.MIN_ROWS`). PyTorch's fused CPU kernel does not have this property with two threads,
and its result depends on the padded length unless that is a multiple of 32. Batched matrix products and a softmax do
have it, and are faster here for one query per row (256 rows, 4 heads of 32, 96 slots, one core: 0.96 against 1.37 ms).

On a GPU, products of other shapes use other kernels: equal ids across batch shapes are likely, not certain. There,
prompts use PyTorch's fused kernel, and rows being decoded use `fused_attention`. The products below are its formula,
and its replacement where Triton cannot run.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from sightline_sampler.engines.local import fused_attention
from sightline_sampler.engines.local.graphs import CutKeys
from sightline_sampler.engines.local.kv import LayerSlots

NAME = "sightline_rowwise"
# Options that some architectures need and this attention lacks; the engine then refuses to start.
_UNKNOWN = ("softcap", "position_bias", "s_aux", "cache")


def rowwise_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | LayerSlots | CutKeys,
    value: torch.Tensor | LayerSlots | CutKeys,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q k^T * scaling + mask) v, with grouped key/value heads not copied.

    Args:
        module: the attention's module.
        query: (batch, heads, queries, dim).
        key: (batch, key_value_heads, slots, dim), or the slots of a `RowCache`, which have their own masks, or, while
            a step is recorded, where a piece ends.
        value: as `key`.
        attention_mask: additive, (batch, 1, queries, at least slots), or None for full attention.
        scaling: factor of the products; None means dim ** -0.5.
        dropout: must be 0.
        kwargs: further options of an architecture.

    Returns:
        (batch, queries, heads, dim), and no weights.
    """
    if dropout or any(kwargs.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError(f"{NAME} attention does not do dropout or any of {', '.join(_UNKNOWN)}")
    if isinstance(key, CutKeys):
        return key.cut(query, scaling), None
    if isinstance(key, LayerSlots):
        if key.new is not None:
            return fused_attention.attend(query, key, scaling), None
        out = torch.zeros_like(query)  # rows beyond the last part exist only for the other kernels
        if key.stems is not None:
            out[: key[-1].stop] = _with_stems(query[: key[-1].stop], key, scaling)
        else:
            for part in key:
                rows = query[part.start : part.stop]
                out[part.start : part.stop] = _attend(rows, part.keys, part.values, part.mask, scaling)
    elif query.is_cuda:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return, arg-type, unused-ignore]
    else:
        assert isinstance(value, torch.Tensor)
        count = getattr(module, "last_tokens", None)  # set by last_layer.py
        if count is None:
            out = _attend(query, key, value, attention_mask, scaling)
        else:
            mask = None if attention_mask is None else attention_mask[:, :, -count:]
            out = torch.zeros_like(query)
            out[:, :, -count:] = _attend(query[:, :, -count:], key, value, mask, scaling)
    return out.transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    batch, heads, queries, dim = query.shape
    groups, slots = key.shape[1], key.shape[2]
    query = query * (scaling if scaling is not None else dim**-0.5)
    if groups != heads:
        query = query.reshape(batch, groups, heads // groups * queries, dim)
    weights = torch.matmul(query, key.transpose(2, 3)).view(batch, heads, queries, slots)
    if mask is not None:
        weights = weights + mask[..., :slots]
    weights = torch.softmax(weights, dim=-1, dtype=torch.float32).to(value.dtype)
    if groups != heads:
        weights = weights.view(batch, groups, heads // groups * queries, slots)
    return torch.matmul(weights, value).view(batch, heads, queries, value.shape[-1])


def _with_stems(query: torch.Tensor, slots: LayerSlots, scaling: float | None) -> torch.Tensor:
    """Attention over a stem and a row's own slots, (rows, heads, 1, dim).

    Both give their largest product m, the sum d of exp(product - m), and the sum o of values weighted by that. With
    e = exp(m - max m), the whole is (e o + e' o') / (e d + e' d'): the softmax over both, term by term.
    """
    rows, heads, _, dim = query.shape
    query = query[:, :, 0] * (scaling if scaling is not None else dim**-0.5)
    top = query.new_empty((2, rows, heads, 1), dtype=torch.float32)
    mass, out = torch.empty_like(top), query.new_empty((2, rows, heads, dim), dtype=torch.float32)
    for part in slots:
        groups, mine = part.keys.shape[1], slice(part.start, part.stop)
        q = query[mine].view(-1, groups, heads // groups, dim)
        products = torch.matmul(q, part.keys.transpose(2, 3)) + part.mask
        found = _sums(products, part.values)
        for into, value in zip((top, mass, out), found, strict=True):
            into[0, mine] = value.view(value.shape[0], heads, -1)
    for view in slots.stems or ():
        stems, groups = view.keys.shape[:2]
        each, most = heads // groups, view.most
        q = query.index_select(0, view.gather).view(stems, most, groups, each, dim).permute(0, 2, 3, 1, 4)
        products = torch.matmul(q.reshape(stems, groups, each * most, dim), view.keys.transpose(2, 3)) + view.mask
        found = _sums(products, view.values)
        for into, value in zip((top, mass, out), found, strict=True):
            value = value.view(stems, groups, each, most, -1).permute(0, 3, 1, 2, 4).reshape(stems * most, heads, -1)
            into[1, view.rows] = value.index_select(0, view.places)
    scale = torch.exp(top - top.amax(dim=0))
    return ((scale * out).sum(dim=0) / (scale * mass).sum(dim=0)).to(query.dtype)[:, :, None]


def _sums(products: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest product, the sum of exp(product - largest), and the sum of values weighted by that."""
    products = products.float()
    top = products.amax(dim=-1, keepdim=True)
    weights = torch.exp(products - top)
    return top, weights.sum(dim=-1, keepdim=True), torch.matmul(weights.to(values.dtype), values).float()


def register(device: torch.device) -> None:
    """Make the attention known to transformers under `NAME`."""
    AttentionInterface.register(NAME, rowwise_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask if device.type == "cuda" else eager_mask)
