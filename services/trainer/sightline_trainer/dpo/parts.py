"""Parts: a batch as several forward and backward passes of a bounded number of tokens, with the whole batch's gradient.

A loss that is a mean over pairs is the sum of its parts' losses, each times its share of the pairs; one that is a mean
over the chosen sides' tokens (sft) each times its share of those. So memory is bounded by tokens, and what is learned
from is the batch still. Losses that hold the pairs of a batch against each other have no parts: a recipe refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

PARTS = "parts"
"""Where a batch that is too large has the batches that it is made of."""

T = TypeVar("T")


def within(pairs: Sequence[T], budget: int, tokens: Callable[[Sequence[T]], int]) -> list[list[T]]:
    """The pairs in groups of at most `budget` tokens, in their order, so that those of one prompt stay together. A pair
    that has more alone is a group of its own.

    Args:
        tokens: of a batch of such pairs.
    """
    groups: list[list[T]] = []
    for pair in pairs:
        if groups and tokens([*groups[-1], pair]) <= budget:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def parts_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The batches to run one after another: those of its parts, or the batch itself."""
    found: list[dict[str, Any]] = batch[PARTS] if PARTS in batch else [dict(batch)]
    return found


def shares(parts: Sequence[Mapping[str, Any]], rows: int = 2) -> list[tuple[float, float]]:
    """Of each part, its share of the batch's pairs and of the tokens of its chosen sides.

    Args:
        rows: of a pair.
    """
    pairs = [len(part["completion_mask"]) // rows for part in parts]
    masks = [part["completion_mask"][:count] for part, count in zip(parts, pairs, strict=True)]
    tokens = torch.stack([mask[:, 1:].sum() for mask in masks]).tolist()
    return [(count / sum(pairs), number / sum(tokens)) for count, number in zip(pairs, tokens, strict=True)]


def in_step(parts: Sequence[T], accelerator: Any) -> list[T]:
    """The parts, the last one again and again where another process has more: all take part in every forward."""
    most = len(parts)
    if accelerator.num_processes > 1:
        counts: Tensor = accelerator.gather(torch.tensor([most], device=accelerator.device))
        most = int(counts.max())
    return [*parts, *[parts[-1]] * (most - len(parts))]


def merged(values: Mapping[str, list[float]], begun: Mapping[str, int], weights: Sequence[float]) -> None:
    """What each part put down, as one value of the batch: the mean by weight.

    Args:
        values: by name; changed in place.
        begun: how many of each name were there before.
        weights: of the parts.
    """
    for name, listed in values.items():
        start = begun.get(name, 0)
        if len(listed) - start == len(weights):
            listed[start:] = [sum(value * weight for value, weight in zip(listed[start:], weights, strict=True))]
