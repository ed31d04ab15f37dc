"""The row cache: rows of unequal length come, go and grow, and keep what is theirs."""

import random

import torch
from sightline_sampler.engines.kv import RowCache, round_up

HEADS, DIM, LAYERS = 2, 3, 2


def layers(rows: int, slots: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shape = (rows, HEADS, slots, DIM)
    return [(torch.randn(shape), torch.randn(shape)) for _ in range(LAYERS)]


def test_rows_keep_what_is_theirs_whatever_happens_around_them() -> None:
    """Against plain lists of tensors: two hundred random inserts, steps and removals."""
    randomly = random.Random(0)
    torch.manual_seed(0)
    cache = RowCache(layers(1, 1), 2, 32)
    rows: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # per row and layer: keys and values (heads, length, dim)
    for _ in range(200):
        choice = randomly.random()
        if choice < 0.25 or not rows:
            count, length = randomly.randint(1, 3), randomly.randint(1, 40)
            prefix = layers(2, length)
            source = torch.tensor([randomly.randint(0, 1) for _ in range(count)])
            cache.grow(len(rows) + count, round_up(max(length, *(r[0][0].shape[1] for r in rows), 1) + 1, 32))
            cache.insert(len(rows), prefix, source)
            rows += [[(k[i].clone(), v[i].clone()) for k, v in prefix] for i in source.tolist()]
        elif choice < 0.4:
            keep = [randomly.random() < 0.6 for _ in rows]
            left = sum(keep)
            to = [i for i in range(left) if not keep[i]]
            out_of = [i for i in range(left, len(rows)) if keep[i]]
            cache.move(to, out_of, cache.room[1])
            for a, b in zip(to, out_of, strict=True):
                rows[a] = rows[b]
            del rows[left:]
        else:
            lengths = [row[0][0].shape[1] for row in rows]
            slots = round_up(max(lengths) + 1, 32)
            cache.grow(len(rows), slots)
            cache.aim(torch.tensor(lengths), slots)
            for number in range(LAYERS):
                new = torch.randn(2, len(rows), HEADS, 1, DIM)
                keys, values = cache.update(new[0], new[1], number)
                assert keys.shape == values.shape == (len(rows), HEADS, slots, DIM)
                for i, row in enumerate(rows):
                    row[number] = (torch.cat([row[number][0], new[0][i]], 1), torch.cat([row[number][1], new[1][i]], 1))
        for i, row in enumerate(rows):
            for layer, (k, v) in zip(cache.layers, row, strict=True):
                assert torch.equal(layer.keys[i, :, : k.shape[1]], k)
                assert torch.equal(layer.values[i, :, : v.shape[1]], v)


def test_sizes() -> None:
    assert [round_up(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
    assert RowCache.slot_bytes(layers(1, 1)) == LAYERS * 2 * HEADS * DIM * 4
