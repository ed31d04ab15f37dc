"""Attention over a pack, as a function of transformers' AttentionInterface.

Prefixes attend to themselves, causally and without a mask (with one where the tokens of an image see each other both
ways); branches attend to their prefix and to themselves in a second call. So little of what no token sees is computed:
one mask over the whole row would compute everything and discard most of it. Prompts of similar length are grouped
(`tiles.py`), so a batch takes a few calls, not two per prompt. It works with gradient checkpointing like any attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sightline_trainer.dpo.gathered import Gathered
from sightline_trainer.dpo.packing import Pack

NAME = "sightline_shared_prefix"


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: Pack | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [1, H, T, D] over the pack's groups; without a pack, transformers' sdpa.

    In the last layer (`last_layer.py`) only the scored tokens attend.

    Returns:
        [1, T, H, D] and None, as transformers asks for.
    """
    if shared_prefix is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    kwargs["is_causal"] = None

    # Token by token, as projections write them, so that whole rows are copied.
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))

    def attend(queries: Gathered, keys: Gathered, count: int, mask: Tensor | None) -> Tensor:
        """[count * Q, H, D] for `count` rows, given by their tokens' places in the pack."""
        q, k, v = (_rows(part, at, count) for part, at in ((query, queries), (key, keys), (value, keys)))
        out: Tensor = sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0]
        return out.flatten(0, 1)

    tiling = shared_prefix.tiling(query.device)
    only_scored = getattr(module, "only_scored", False)
    parts: list[Tensor] = []
    for tile in tiling.tiles:
        if only_scored:
            parts.append(attend(tile.ends, tile.prefixes, tile.groups, tile.ends_mask))
        else:
            parts.append(attend(tile.prefixes, tile.prefixes, tile.groups, tile.both_ways))
        if tile.runs:
            parts.append(attend(tile.queries, tile.keys, tile.runs, tile.mask))
    outputs = torch.cat(parts)
    if only_scored:
        return tiling.scored.put(tiling.scored_order.pick(outputs), len(query))[None], None
    return tiling.order.pick(outputs)[None], None


def _rows(values: Tensor, places: Gathered, count: int) -> Tensor:
    """[count, H, L, D] from [T, H, D]."""
    picked = places.pick(values)
    return picked.view(count, -1, *picked.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
