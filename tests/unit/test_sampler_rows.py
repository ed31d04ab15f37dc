"""The row cache: rows of unequal length join, leave and grow, and keep their own values."""

import random

import numpy as np
import pytest
import torch
from sightline_sampler.engines.local import kv
from sightline_sampler.engines.local.attention import rowwise_attention
from sightline_sampler.engines.local.kv import LayerSlots, RowCache, round_up, width_for
from sightline_sampler.engines.local.states import Kept

HEADS, DIM, LAYERS = 2, 3, 2

Pair = tuple[torch.Tensor, torch.Tensor]


def layers(rows: int, slots: int) -> list[Pair]:
    shape = (rows, HEADS, slots, DIM)
    return [(torch.randn(shape), torch.randn(shape)) for _ in range(LAYERS)]


def held(pairs: list[Pair]) -> Kept:
    return Kept(pairs, tuple(range(len(pairs))), {})


def in_order(cache: RowCache) -> list[list[Pair]]:
    """The cache's content row by row, in its numbering: keys and values of each layer."""
    own = [
        [(keys[i], values[i]) for keys, values in segment.layers]
        for segment in cache.segments
        for i in range(segment.count)
    ]
    if not cache.shared:
        return own
    shared: dict[int, list[Pair]] = {}
    for stem in cache.stems():
        shared |= {number: [(keys[0], values[0]) for keys, values in stem.layers] for number in stem.rows}
    return [
        [(torch.cat([a[0], b[0]], 1), torch.cat([a[1], b[1]], 1)) for a, b in zip(shared[i], row, strict=True)]
        for i, row in enumerate(own)
    ]


def lengths_of(rows: list[list[Pair]]) -> np.ndarray:
    return np.array([row[0][0].shape[1] for row in rows], np.int64)


@pytest.mark.parametrize("stem_slots", [1000, 1], ids=["copied", "shared"])
def test_rows_keep_what_is_theirs_whatever_happens_around_them(
    stem_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with plain lists of tensors over three hundred random inserts, steps and removals."""
    monkeypatch.setattr(kv, "STEM_SLOTS", stem_slots)
    randomly = random.Random(0)
    torch.manual_seed(0)
    cache = RowCache(held(layers(1, 1)))
    rows: list[list[Pair]] = []  # per row and layer: keys and values (heads, length, dim)
    for _ in range(300):
        choice = randomly.random()
        if choice < 0.2 or not rows:
            prefix = layers(2, randomly.randint(1, 70))
            source = torch.tensor([randomly.randint(0, 1) for _ in range(randomly.randint(1, 3))])
            order = cache.insert(held(prefix), source)
            rows += [[(k[i].clone(), v[i].clone()) for k, v in prefix] for i in source.tolist()]
            rows = [rows[i] for i in order]
        elif choice < 0.35:
            keep = np.array([randomly.random() < 0.6 for _ in rows])
            rows = [rows[i] for i in cache.keep(keep)]
        else:
            rows = [rows[i] for i in cache.widen(lengths_of(rows))]
            cache.aim(lengths_of(rows))
            padded = len(rows) + randomly.randint(0, 2)
            for number in range(LAYERS):
                new = torch.randn(2, padded, HEADS, 1, DIM)
                slots, _ = cache.update(new[0], new[1], number)
                assert isinstance(slots, LayerSlots)
                for i, row in enumerate(rows):
                    row[number] = (torch.cat([row[number][0], new[0][i]], 1), torch.cat([row[number][1], new[1][i]], 1))
                check_attention(slots, [row[number] for row in rows], padded)
        assert cache.count == len(rows)
        for found, row in zip(in_order(cache), rows, strict=True):
            for (keys, values), (k, v) in zip(found, row, strict=True):
                assert torch.equal(keys[:, : k.shape[1]], k)
                assert torch.equal(values[:, : v.shape[1]], v)


def check_attention(slots: LayerSlots, rows: list[Pair], padded: int) -> None:
    """Each row attends to all of its own slots and to no others."""
    query = torch.randn(padded, HEADS * 2, 1, DIM)  # two query heads for each key head
    found, _ = rowwise_attention(torch.nn.Identity(), query, slots, slots, None)
    assert found.shape == (padded, 1, HEADS * 2, DIM)
    for i, (keys, values) in enumerate(rows):
        k, v = keys.repeat_interleave(2, 0), values.repeat_interleave(2, 0)
        wanted = torch.softmax(query[i] @ k.transpose(1, 2) * DIM**-0.5, dim=-1) @ v
        torch.testing.assert_close(found[i], wanted.transpose(0, 1))


def test_rows_of_like_length_stand_together() -> None:
    cache = RowCache(held(layers(1, 1)))
    for length in (3, 40, 15, 16, 100):
        cache.insert(held(layers(1, length)), torch.tensor([0, 0]))
    assert [(segment.width, segment.count) for segment in cache.segments] == [(32, 6), (64, 2), (128, 2)]
    order = cache.widen(np.array([3, 3, 31, 32, 33, 17, 40, 64, 100, 100]))
    assert sorted(order.tolist()) == list(range(10))
    assert [(segment.width, segment.count) for segment in cache.segments] == [
        (32, 4), (64, 3), (96, 1), (128, 2),
    ]  # fmt: skip
    cache.keep(np.array([False] * 6 + [True] * 4))
    assert [segment.width for segment in cache.segments] == [64, 96, 128]


def test_candidates_of_a_long_prompt_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "STEM_SLOTS", 100)
    one, two = layers(1, 100), layers(3, 120)
    cache = RowCache(held(one))
    cache.insert(held(one), torch.zeros(8, dtype=torch.long))
    order = cache.insert(held(two), torch.tensor([0, 0, 2]))
    assert order.tolist() == list(range(11))
    assert [(segment.width, segment.count) for segment in cache.segments] == [(32, 11)]
    assert cache.saved() == 7 * 100 + 120
    assert [stem.rows for stem in cache.stems()] == [[*range(8)], [8, 9], [10]]
    cache.keep(np.array([False] * 8 + [True] * 3))
    assert len(cache.stems()) == 2
    assert cache.saved() == 120
    short = RowCache(held(layers(1, 99)))
    short.insert(held(layers(1, 99)), torch.zeros(8, dtype=torch.long))
    assert (short.shared, short.saved()) == (False, 0)


def test_shared_prompts_give_each_row_the_same_bits_whatever_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "STEM_SLOTS", 1)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    prefix, query, new = layers(2, 300), torch.randn(9, HEADS, 1, DIM), torch.randn(2, 9, HEADS, 1, DIM)

    def attend(source: list[int], rows: list[int]) -> torch.Tensor:
        cache = RowCache(held(prefix))
        cache.insert(held(prefix), torch.tensor(source))
        cache.aim(np.full(len(source), 300))
        slots, _ = cache.update(new[0][rows], new[1][rows], 0)
        return rowwise_attention(torch.nn.Identity(), query[rows], slots, slots, None)[0]

    whole = attend([0, 1, 0, 1, 0, 0, 0, 0, 0], list(range(9)))
    for row, source in ((0, 0), (1, 1), (3, 1), (8, 0)):
        for beside in ([], [2], [2, 4], [2, 4, 5, 6, 7]):
            found = attend([source, *(0 for _ in beside)], [row, *beside])
            assert torch.equal(found[0], whole[row])


def test_many_prompts_are_attended_to_in_as_many_operations_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of operations of a step, each a launch on a GPU, does not grow with the number of prompts."""
    monkeypatch.setattr(kv, "STEM_SLOTS", 100)

    def operations(prompts: int) -> int:
        cache = RowCache(held(layers(1, 120)))
        for number in range(prompts):
            cache.insert(held(layers(1, 120 - number % 20)), torch.zeros(8, dtype=torch.long))
        rows = 8 * prompts
        cache.aim(np.array([stem.length for stem in cache.stems() for _ in stem.rows]))
        new, query = torch.randn(2, rows, HEADS, 1, DIM), torch.randn(rows, HEADS, 1, DIM)
        cache.update(new[0], new[1], 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            slots, _ = cache.update(new[0], new[1], 0)
            rowwise_attention(torch.nn.Identity(), query, slots, slots, None)
        return sum(event.name.startswith("aten::") for event in profile.events())

    assert operations(64) <= 2 * operations(1)


def test_sizes() -> None:
    assert [round_up(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
    assert RowCache.slot_bytes(layers(1, 1)) == LAYERS * 2 * HEADS * DIM * 4
    widths = [width_for(n) for n in (1, 16, 17, 128, 129, 250, 600, 4000)]
    assert widths[:5] == [32, 32, 32, 128, 160]
    for slots, width in zip((250, 600, 4000), widths[5:], strict=True):
        assert slots <= width <= slots * 1.15
        assert width % 32 == 0
