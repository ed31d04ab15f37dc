"""Triton kernels for the attention of rows being decoded, on a GPU: two launches a layer in place of some fifty.

The formulas are those of `attention`: softmax over a shared prompt (stem) and a row's own slots, as two softmaxes that
are joined by their largest products and sums (FlashAttention's, arXiv 2205.14135; a shared beginning as in Hydragen,
arXiv 2402.05099). Products and sums are float32 here, also in half precision.

`stem_kernel` attends once to each stem for all rows that share it and keeps largest product, sum and weighted values.
`row_kernel` writes a row's new key and value into its slot, attends to the row's own slots, and joins both.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _with_block(largest, total, sums, products, v, PRECISION: tl.constexpr):
    """Largest product (M,), sum (M,) and weighted values (M, D_V), with a block of products (M, N) and values added."""
    now = tl.maximum(largest, tl.max(products, 1))
    weights = tl.exp(products - now[:, None])
    faded = tl.exp(largest - now)
    total = total * faded + tl.sum(weights, 1)
    return now, total, sums * faded[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)


@triton.jit(do_not_specialize=["first_place", "most", "width"])
def stem_kernel(
    query, gather, keys, values, mask, top, mass, out,
    first_place, most, width, scale,
    q_row, q_head, k_stem, k_group, k_slot, v_stem, v_group, v_slot,
    HEADS: tl.constexpr, EACH: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of `most` rows to each stem. Grid: (stems, groups, ceil(most * EACH / M))."""
    stem, group, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = tile * M + tl.arange(0, M)
    valid = at < most * EACH
    place = stem * most + at // EACH
    head = group * EACH + at % EACH
    row = tl.load(gather + place, mask=valid, other=0)
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    q = tl.load(
        query + row[:, None] * q_row + head[:, None] * q_head + dim[None, :],
        mask=valid[:, None] & (dim[None, :] < DIM), other=0.0,
    )  # fmt: skip
    largest = tl.full((M,), -1e30, tl.float32)
    total = tl.zeros((M,), tl.float32)
    sums = tl.zeros((M, D_V), tl.float32)
    for first in range(0, width, N):
        slot = first + tl.arange(0, N)
        seen = slot < width
        k = tl.load(
            keys + stem.to(tl.int64) * k_stem + group * k_group + slot[:, None] * k_slot + dim[None, :],
            mask=seen[:, None] & (dim[None, :] < DIM), other=0.0,
        )  # fmt: skip
        v = tl.load(
            values + stem.to(tl.int64) * v_stem + group * v_group + slot[:, None] * v_slot + dim_v[None, :],
            mask=seen[:, None] & (dim_v[None, :] < DIM_V), other=0.0,
        )  # fmt: skip
        beyond = tl.load(mask + stem * width + slot, mask=seen, other=-float("inf")).to(tl.float32)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + beyond[None, :]
        largest, total, sums = _with_block(largest, total, sums, products, v, PRECISION)
    kept = (first_place + place) * HEADS + head
    tl.store(top + kept, largest, mask=valid)
    tl.store(mass + kept, total, mask=valid)
    tl.store(
        out + kept[:, None] * DIM_V + dim_v[None, :], sums, mask=valid[:, None] & (dim_v[None, :] < DIM_V)
    )  # fmt: skip


@triton.jit(do_not_specialize=["start"])
def row_kernel(
    query, new_key, new_value, keys, values, positions, where, top, mass, out, result,
    start, scale,
    q_row, q_head, n_row, n_group, m_row, m_group, k_row, k_group, k_slot, v_row, v_group, v_slot,
    HEADS: tl.constexpr, EACH: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, STEMS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the rows' new tokens, attend to their own slots, and join their stems' parts.

    Grid: (rows of a segment, groups).
    """
    mine, group = tl.program_id(0), tl.program_id(1)
    row = start + mine
    each = tl.arange(0, M)
    valid = each < EACH
    head = group * EACH + each
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    position = tl.load(positions + mine).to(tl.int32)
    q = tl.load(
        query + row * q_row + head[:, None] * q_head + dim[None, :],
        mask=valid[:, None] & (dim[None, :] < DIM), other=0.0,
    )  # fmt: skip
    key = tl.load(new_key + row * n_row + group * n_group + dim, mask=dim < DIM, other=0.0)
    value = tl.load(new_value + row * m_row + group * m_group + dim_v, mask=dim_v < DIM_V, other=0.0)
    my_keys = keys + mine.to(tl.int64) * k_row + group * k_group
    my_values = values + mine.to(tl.int64) * v_row + group * v_group
    tl.store(my_keys + position * k_slot + dim, key, mask=dim < DIM)
    tl.store(my_values + position * v_slot + dim_v, value, mask=dim_v < DIM_V)
    largest = tl.sum(q.to(tl.float32) * key[None, :].to(tl.float32), 1) * scale
    total = tl.full((M,), 1.0, tl.float32)
    sums = tl.zeros((M, D_V), tl.float32) + value[None, :].to(tl.float32)
    for first in range(0, position, N):
        slot = first + tl.arange(0, N)
        seen = slot < position
        k = tl.load(
            my_keys + slot[:, None] * k_slot + dim[None, :], mask=seen[:, None] & (dim[None, :] < DIM), other=0.0
        )  # fmt: skip
        v = tl.load(
            my_values + slot[:, None] * v_slot + dim_v[None, :],
            mask=seen[:, None] & (dim_v[None, :] < DIM_V), other=0.0,
        )  # fmt: skip
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        products = tl.where(seen[None, :], products, -float("inf"))
        largest, total, sums = _with_block(largest, total, sums, products, v, PRECISION)
    if STEMS:
        kept = tl.load(where + row) * HEADS + head
        their_top = tl.load(top + kept, mask=valid, other=-1e30)
        their_mass = tl.load(mass + kept, mask=valid, other=0.0)
        their_sums = tl.load(
            out + kept[:, None] * DIM_V + dim_v[None, :], mask=valid[:, None] & (dim_v[None, :] < DIM_V), other=0.0
        )  # fmt: skip
        now = tl.maximum(largest, their_top)
        ours, theirs = tl.exp(largest - now), tl.exp(their_top - now)
        total = total * ours + their_mass * theirs
        sums = sums * ours[:, None] + their_sums * theirs[:, None]
    tl.store(
        result + (row * HEADS + head[:, None]) * DIM_V + dim_v[None, :], sums / total[:, None],
        mask=valid[:, None] & (dim_v[None, :] < DIM_V),
    )  # fmt: skip
