"""Attention over a pack, as a function of transformers' AttentionInterface.

A prefix attends to itself, causally, in one call without a mask; its branches attend to it and to themselves in
another. What no token sees is hardly multiplied: one mask over the whole row would do all sums and throw most of them
away. With gradient checkpointing it works as any attention does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sightline_trainer.dpo.packing import Group, Pack

NAME = "sightline_shared_prefix"
# Branches that are attended to in one call: each pays for the keys of the others, which a mask hides, and saves a copy
# of the prefix's keys and values.
TOGETHER = 4


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: Pack | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` [1, H, T, D] over the pack's groups; without a pack, transformers' sdpa.

    Returns:
        [1, T, H, D] and None, as transformers asks for.
    """
    if shared_prefix is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    kwargs["is_causal"] = None
    lengths = [group.length for group in shared_prefix.groups]
    parts = [
        _group(module, shared_prefix, group, q, k, v, kwargs)
        for group, q, k, v in zip(
            shared_prefix.groups,
            query.split(lengths, dim=2),
            key.split(lengths, dim=2),
            value.split(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat([out for part in parts for out in part], dim=1), None


def _group(
    module: nn.Module, pack: Pack, group: Group, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
) -> list[Tensor]:
    """The pieces of one group's output, in order, each [1, length, H, D]."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0]
        return out

    inner = group.length - group.prefix
    if inner == 0:
        return [attend(query, key, value, None)]
    prefix_query, rest = query.split([group.prefix, inner], dim=2)
    prefix_key, keys = key.split([group.prefix, inner], dim=2)
    prefix_value, values = value.split([group.prefix, inner], dim=2)
    pieces = [attend(prefix_query, prefix_key, prefix_value, None)]
    runs = _runs(group.branches)
    if len(runs) == 1:
        mask = pack.mask(group.prefix, runs[0], query.device)
        return [*pieces, attend(rest, key, value, mask)]
    sizes = [sum(run) for run in runs]
    for run, q, k, v in zip(
        runs, rest.split(sizes, dim=2), keys.split(sizes, dim=2), values.split(sizes, dim=2), strict=True
    ):
        mask = pack.mask(group.prefix, run, query.device)
        pieces.append(attend(q, torch.cat([prefix_key, k], dim=2), torch.cat([prefix_value, v], dim=2), mask))
    return pieces


def _runs(branches: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The branches that have any token, TOGETHER at a time."""
    long = tuple(length for length in branches if length)
    return [long[i : i + TOGETHER] for i in range(0, len(long), TOGETHER)]


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
