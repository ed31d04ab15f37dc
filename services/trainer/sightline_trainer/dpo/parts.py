"""Parts: split a batch into several forward and backward passes of bounded size, with the whole batch's gradient.

A loss that is a mean over pairs is the sum of its parts' losses, each times the part's share of the pairs. For a mean
over the chosen sides' tokens (sft), it is the share of these tokens. So memory is bounded by tokens, and the gradient
is still that of the batch. Losses that compare the pairs of a batch with each other can't be split: a recipe refuses
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

PARTS = "parts"
"""Key of a large batch under which its parts are."""

T = TypeVar("T")


def within(pairs: Sequence[T], budget: int, tokens: Callable[[Sequence[T]], int]) -> list[list[T]]:
    """The pairs in groups of at most `budget` tokens, in order, so that pairs of one prompt stay together. A pair with
    more tokens is a group by itself.

    Args:
        tokens: returns the number of tokens of a batch of pairs.
    """
    groups: list[list[T]] = []
    for pair in pairs:
        if groups and tokens([*groups[-1], pair]) <= budget:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def parts_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The batches to run one after another: the parts, or the batch itself."""
    found: list[dict[str, Any]] = batch[PARTS] if PARTS in batch else [dict(batch)]
    return found


def shares(parts: Sequence[Mapping[str, Any]], rows: int = 2) -> list[tuple[float, float]]:
    """For each part, its share of the batch's pairs and of the tokens of the chosen sides.

    Args:
        rows: of a pair.
    """
    pairs = [len(part["completion_mask"]) // rows for part in parts]
    masks = [part["completion_mask"][:count] for part, count in zip(parts, pairs, strict=True)]
    tokens = torch.stack([mask[:, 1:].sum() for mask in masks]).tolist()
    return [(count / sum(pairs), number / sum(tokens)) for count, number in zip(pairs, tokens, strict=True)]


def in_step(parts: Sequence[T], accelerator: Any) -> list[T]:
    """The parts; the last one repeats if another process has more, since all processes take part in every forward
    pass."""
    most = len(parts)
    if accelerator.num_processes > 1:
        counts: Tensor = accelerator.gather(torch.tensor([most], device=accelerator.device))
        most = int(counts.max())
    return [*parts, *[parts[-1]] * (most - len(parts))]


def merged(values: Mapping[str, list[float]], begun: Mapping[str, int], weights: Sequence[float]) -> None:
    """The parts' values as one value of the batch: the weighted mean.

    Args:
        values: by name; changed in place.
        begun: number of values of each name before the batch.
        weights: the parts' weights.
    """
    for name, listed in values.items():
        start = begun.get(name, 0)
        if len(listed) - start == len(weights):
            listed[start:] = [sum(value * weight for value, weight in zip(listed[start:], weights, strict=True))]
