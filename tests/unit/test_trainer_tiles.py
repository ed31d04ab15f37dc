"""Tiles: every token of a pack sees only its prefix and its own branch so far, whatever is packed together."""

import random

import pytest
import torch
from sightline_trainer.dpo.attention import shared_attention
from sightline_trainer.dpo.packing import Pack
from sightline_trainer.dpo.tiles import SLACK, Group, tile
from torch import nn

CPU = torch.device("cpu")


def groups_of(seed: int) -> tuple[Group, ...]:
    """Prefixes of two sizes and odd ones; up to ten branches, some without a token."""
    rng = random.Random(seed)
    return tuple(
        Group(
            rng.choice([3, 3, 4, 20, 21, 60]), tuple(rng.randrange(6) for _ in range(rng.choice([0, 1, 2, 2, 5, 10])))
        )
        for _ in range(rng.randrange(1, 9))
    )


def seen(groups: tuple[Group, ...]) -> torch.Tensor:
    """[T, T] which tokens each token sees."""
    total = sum(group.length for group in groups)
    sees = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for group in groups:
        sees[start : start + group.prefix, start : start + group.prefix] = True
        at = start + group.prefix
        for length in group.branches:
            sees[at : at + length, start : start + group.prefix] = True
            sees[at : at + length, at : at + length] = True
            at += length
        start = at
    return sees.tril()


def pack_of(groups: tuple[Group, ...]) -> Pack:
    empty = torch.empty(0, dtype=torch.long)
    return Pack(empty, empty, empty, empty, empty, empty, (0, 0), groups, [])


def scored(groups: tuple[Group, ...]) -> torch.Tensor:
    """[T] whether a token predicts a response's token: the last of a prefix, and all of its branches."""
    lengths = torch.tensor([[group.prefix - 1, 1 + sum(group.branches)] for group in groups]).flatten()
    return torch.tensor([False, True]).repeat(len(groups)).repeat_interleave(lengths)


@pytest.mark.parametrize("last", [False, True], ids=["every_layer", "last_layer"])
@pytest.mark.parametrize("seed", range(20))
def test_attention_and_its_gradients_are_those_under_one_mask(seed: int, last: bool) -> None:
    torch.manual_seed(seed)
    groups = groups_of(seed)
    module = nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    module.num_key_value_groups = 2  # type: ignore[assignment]
    module.only_scored = last  # type: ignore[assignment]
    total = sum(group.length for group in groups)
    query = torch.randn(1, 4, total, 8, requires_grad=True)
    key, value = (torch.randn(1, 2, total, 8, requires_grad=True) for _ in range(2))
    found, _ = shared_attention(module, query, key, value, None, shared_prefix=pack_of(groups))
    wide = [part.repeat_interleave(2, dim=1) for part in (key, value)]
    expected = nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=seen(groups)).transpose(1, 2)
    if last:
        expected = expected * scored(groups)[:, None, None]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_little_is_filled_up(seed: int) -> None:
    groups = groups_of(seed)
    tiling = tile(groups, CPU)
    assert sum(one.groups for one in tiling.tiles) == len(groups)
    assert sum(len(one.prefixes.rows) for one in tiling.tiles) <= (1 + SLACK) * sum(group.prefix for group in groups)
    assert tiling.order.rows.unique().numel() == sum(group.length for group in groups)


def test_prompts_of_one_length_go_together() -> None:
    assert len(tile([Group(50, (3, 4))] * 16, CPU).tiles) == 1
