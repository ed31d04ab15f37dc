"""A model's forward pass over one token per row."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache


def pass_tokens(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, axes: int, cache: Cache, dtype: torch.dtype
) -> torch.Tensor:
    """Logits (rows, vocabulary) after one token per row.

    Args:
        model: the model.
        ids: (rows, 1).
        positions: (rows, 1), the tokens' positions for the model.
        axes: number of position dimensions, for models with several; otherwise 0.
        cache: the rows' keys and values.
        dtype: the model's.
    """
    logits: torch.Tensor = model(
        input_ids=ids,
        position_ids=positions.expand(axes, -1, -1) if axes else positions,
        # Four dimensions, so that transformers makes no mask: the cache has one for each of its segments.
        attention_mask=torch.zeros((1, 1, 1, 1), dtype=dtype, device=ids.device),
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    return logits
