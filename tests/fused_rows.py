"""Compare the kernels of `row_kernels` with plain operators, by Triton's interpreter: TRITON_INTERPRET=1.

Prints the largest difference of each shape. Rows join, leave, and move to wider segments meanwhile.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from sightline_sampler.engines.local.attention import rowwise_attention
from sightline_sampler.engines.local.kv import RowCache
from sightline_sampler.engines.local.states import Kept

LAYERS = 2


def worst(groups: int, each: int, dim: int, prompt: int, steps: int) -> float:
    """Largest difference over all steps; `each` heads share a group of keys."""
    plain_and_fused = [RowCache(_kept(2, groups, prompt, dim), fused=fused) for fused in (False, True)]
    first, second = _kept(2, groups, prompt, dim), _kept(1, groups, prompt, dim)
    lengths, found = np.full(5, prompt), 0.0
    for cache in plain_and_fused:
        cache.insert(first, torch.tensor([0, 0, 0, 1, 1]))
    for step in range(steps):
        for cache in plain_and_fused if step == 2 else ():
            order = cache.insert(second, torch.tensor([0, 0]))
        if step == 2:
            lengths = np.concatenate([lengths, [prompt, prompt]])[order]
        if step == 4:
            kept = np.arange(len(lengths)) != 1
            order, _ = (cache.keep(kept) for cache in plain_and_fused)
            lengths = lengths[order]
        order, _ = (cache.widen(lengths) for cache in plain_and_fused)
        lengths = lengths[order]
        for cache in plain_and_fused:
            cache.aim(lengths)
        for layer in range(LAYERS):
            query, key, value = (
                torch.randn(len(lengths), 1, heads, dim).transpose(1, 2) for heads in (groups * each, groups, groups)
            )
            out = []
            for cache in plain_and_fused:
                slots = cache.slots(layer, key, value)
                out.append(rowwise_attention(torch.nn.Identity(), query, slots, slots, None)[0])
            found = max(found, float((out[0] - out[1]).abs().max()))
        lengths = lengths + 1
    return found


def _kept(rows: int, groups: int, prompt: int, dim: int) -> Kept:
    layers = [(torch.randn(rows, groups, prompt, dim), torch.randn(rows, groups, prompt, dim)) for _ in range(LAYERS)]
    return Kept(layers, tuple(range(LAYERS)), {})


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({
        "own slots alone": worst(2, 2, 16, 29, 6),
        "shared prompts, grouped heads, a width that is no power of two": worst(2, 3, 24, 150, 6),
        "one head a group": worst(2, 1, 32, 130, 6),
        "seven heads of 128": worst(1, 7, 128, 200, 3),
    }))  # fmt: skip
