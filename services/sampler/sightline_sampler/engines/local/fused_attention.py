"""Attention of rows being decoded by Triton kernels, on a GPU (`row_kernels`); the formula is `attention`'s."""

from __future__ import annotations

from typing import Any

import torch

from sightline_sampler.engines.local.kv import LayerSlots

_SMALLEST = 16  # a side of a product of Triton's
_MOST_ROWS = 64  # rows and heads of one program


def attend(
    query: torch.Tensor, slots: LayerSlots, scaling: float | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Write the new token of each row, and attend to it, to the row's slots, and to its stem.

    Args:
        query: (at least rows, heads, 1, dim).
        slots: the rows' slots in a layer, with their `new` keys and values (at least rows, groups, 1, dim).
        scaling: factor of the products; None means dim ** -0.5.
        out: written if given.

    Returns:
        (as many as in query, 1, heads, dim of a value); rows beyond the last segment have no meaning.
    """
    with torch.cuda.device_of(query):  # Triton launches on the current GPU
        return _attend(query, slots, scaling, out)


def _attend(query: torch.Tensor, slots: LayerSlots, scaling: float | None, out: torch.Tensor | None) -> torch.Tensor:
    from sightline_sampler.engines.local import row_kernels

    assert slots.new is not None
    key, value = slots.new
    heads, groups, dim, dim_v = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
    if out is None:
        out = query.new_zeros((query.shape[0], 1, heads, dim_v))
    query, key, value = (tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (query, key, value))
    scale = scaling if scaling is not None else dim**-0.5
    small = query.element_size() < 4
    shape: dict[str, Any] = {
        "HEADS": heads, "EACH": heads // groups, "DIM": dim, "DIM_V": dim_v,
        "N": 64 if small and max(dim, dim_v) <= 128 else 32,
        "D": _power(dim), "D_V": _power(dim_v), "PRECISION": "tf32" if small else "ieee",
    }  # fmt: skip
    parts: tuple[Any, ...] = (out, out, out)
    where = out
    if slots.stems:
        assert slots.route is not None
        parts, where = slots.route.parts(heads, dim_v), slots.route.where
        for view, first in zip(slots.stems, slots.route.first, strict=True):
            rows = view.most * shape["EACH"]
            m = min(_MOST_ROWS, _power(rows))
            grid = (view.keys.shape[0], groups, -(-rows // m))
            row_kernels.stem_kernel[grid](
                query, view.gather, view.keys, view.values, view.mask, *parts,
                first, view.most, view.keys.shape[2], scale,
                query.stride(0), query.stride(1), *view.keys.stride()[:3], *view.values.stride()[:3],
                M=m, **shape,
            )  # fmt: skip
    for segment in slots:
        row_kernels.row_kernel[segment.stop - segment.start, groups](
            query, key, value, segment.keys, segment.values, segment.positions, where, *parts, out,
            segment.start, scale,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            *segment.keys.stride()[:3], *segment.values.stride()[:3],
            M=_power(shape["EACH"]), STEMS=bool(slots.stems), **shape,
        )  # fmt: skip
    return out


def _power(number: int) -> int:
    return max(_SMALLEST, 1 << (number - 1).bit_length())
