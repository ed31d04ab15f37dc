"""Diverse group beam search: an example computed by hand, and a plain implementation on random tables."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sampler_engine import Base
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import Beams, Candidate
from sightline_sampler.engines.base import Conversation, SampleWork
from sightline_sampler.engines.local.beams import BeamSearch
from sightline_sampler.engines.local.prefill import Prefix
from sightline_sampler.engines.local.prompts import Prepared
from sightline_sampler.engines.local.rows import Request
from sightline_sampler.engines.local.states import Kept

EOS = 0


def search(table: torch.Tensor, count: int, beams: Beams, limit: int, never: tuple[int, ...] = ()) -> list[Candidate]:
    """Beams of a "model" whose logits depend on the last token only: row i of the table follows token i, its last row
    follows the prompt."""
    vocabulary = table.shape[1]
    base: Any = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, min_rows=4, eos_ids=frozenset({EOS}), vocabulary=vocabulary,
        suppressed=torch.tensor(never, dtype=torch.long), graphs=None, fused=False,
    )  # fmt: skip
    layers = [(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))]
    prefix = Prefix(table[-1:].float(), Kept(layers, (0,), {}), 3, torch.zeros(1, dtype=torch.long), 0)
    work = SampleWork("", Conversation(()), [0] * count, SamplingParams(beams=beams), Base())
    request = Request(work, Prepared(torch.zeros(3, dtype=torch.long), "", {}, {}, ""), limit, asyncio.Queue())

    def model(input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=table[input_ids].float())

    beam_search = BeamSearch(base, 0, request, [(prefix, 0)])
    while True:
        out = beam_search.sample()
        if out:
            assert len(beam_search) == 0
            return [finished for _, finished in out if isinstance(finished, Candidate)]
        beam_search.forward(model)


def ids(found: list[Candidate]) -> list[list[int]]:
    return [one.token_ids.tolist() for one in found]


def test_an_example_by_hand() -> None:
    """After the prompt ids 1, 2, 3 have 0.5, 0.3, 0.2; after 1: 2 has 0.9, 3 has 0.1; after 2: 1 has 0.6, 3 has 0.4;
    after 3: 1 has 1. Two groups of one beam, each taken id costs 1.

    Step 1: group one takes 1 (log 0.5). Group two: 1 has log 0.5 - 1 = -1.69, 2 has log 0.3 = -1.20: it takes 2.
    Step 2: group one takes 2 (log 0.45 in all). Group two, from 2: 1 has log 0.18, 3 has log 0.12; 2 is not likely, so
    no id costs: it takes 1. The scores by length: log 0.45 / 2 = -0.399 and log 0.18 / 2 = -0.857.
    """
    tiny = 1e-12
    table = torch.tensor(
        [[tiny, tiny, tiny, 1.0], [tiny, tiny, 0.9, 0.1], [tiny, 0.6, tiny, 0.4], [tiny, 1.0, tiny, tiny],
         [tiny, 0.5, 0.3, 0.2]]
    ).log()  # fmt: skip
    found = search(table, 2, Beams(2, 1.0), 2)
    assert ids(found) == [[1, 2], [2, 1]]
    np.testing.assert_allclose(found[0].logprobs, np.log([0.5, 0.9]), atol=1e-5)
    np.testing.assert_allclose(found[1].logprobs, np.log([0.3, 0.6]), atol=1e-5)
    assert {one.finish_reason for one in found} == {"length"}
    assert not found[0].behaviour_logprobs.any()
    # At a cost below log 0.5 - log 0.3 = 0.51 both groups take the same.
    assert ids(search(table, 2, Beams(2, 0.5), 2)) == [[1, 2], [1, 2]]
    # One group of two: the two likeliest of all pairs, 1 2 with 0.45 and 3 1 with 0.2 (2 1 has 0.18, 2 3 has 0.12) are
    # not both reached: after step 1 only 1 and 2 continue.
    assert ids(search(table, 2, Beams(1), 2)) == [[1, 2], [2, 1]]
    assert ids(search(table, 3, Beams(1), 2)) == [[1, 2], [3, 1], [2, 1]]
    # Without id 1, group one takes 2 and group two, for which 2 costs 1 of log 0.3 = -1.20, takes 3 with -1.61.
    assert ids(search(table, 2, Beams(2, 1.0), 1, never=(1,))) == [[2], [3]]


def test_ended_beams_count_by_length() -> None:
    """After the prompt: end with 0.4, 1 with 0.6; after 1: end with 0.5, 1 with 0.5.

    One group of two. Step 1: end ranks second of the best four, among the best two: it is kept with log 0.4 = -0.916.
    Beams: 1 with log 0.6. Step 2: 1 end with log 0.3, by length -0.602: kept; the group has two, and the best that goes
    on, 1 1 with log 0.3 = -1.204, counts -0.602 by length: it does not beat -0.916, the worst kept, by enough to say
    that nothing could, so it goes on. Step 3: 1 1 end with log 0.15, by length -0.632: better than -0.916, kept in its
    place. What goes on, 1 1 1, counts log 0.15 / 3 = -0.632 too: the group is done.
    """
    tiny = 1e-12
    table = torch.tensor([[1.0, tiny], [0.5, 0.5], [0.4, 0.6]]).log()
    found = search(table, 2, Beams(1), 10)
    assert ids(found) == [[1, EOS], [1, 1, EOS]]
    assert [one.finish_reason for one in found] == ["eos", "eos"]
    # With a length penalty of 0 the sums themselves count: -0.916 for the end, -1.204 for 1 end.
    assert ids(search(table, 2, Beams(1, length_penalty=0.0), 10)) == [[EOS], [1, EOS]]


def plain(table: torch.Tensor, count: int, beams: Beams, limit: int, never: tuple[int, ...]) -> list[list[int]]:
    """The search as transformers 4 wrote it: one pass over flat lists, each score from the whole response."""
    size = count // beams.groups
    y = torch.log_softmax(table.float().double(), dim=-1)
    y[:, list(never)] = -math.inf
    running = [[([], 0.0 if i == 0 else -1e9) for i in range(size)] for _ in range(beams.groups)]
    ended: list[list[tuple[float, int, list[int]]]] = [[] for _ in range(beams.groups)]
    done = [False] * beams.groups
    order = 0
    for length in range(1, limit + 1):
        taken: list[int] = []
        for g in range(beams.groups):
            if done[g]:
                continue
            totals = []
            for b, (said, score) in enumerate(running[g]):
                for v in range(table.shape[1]):
                    step = float(y[said[-1] if said else -1, v]) - beams.diversity_penalty * taken.count(v)
                    totals.append((score + step, -(b * table.shape[1] + v), said, v))
            totals.sort(reverse=True, key=lambda one: one[:2])
            following = []
            for rank, (total, _, said, v) in enumerate(totals[: 2 * size]):
                if v == EOS:
                    if rank < size:
                        order += 1
                        ended[g].append((total / length**beams.length_penalty, -order, [*said, v]))
                        ended[g] = sorted(ended[g], reverse=True)[:size]
                else:
                    following.append(([*said, v], total))
                if len(following) == size:
                    break
            best = totals[0][0] / length**beams.length_penalty
            done[g] = len(ended[g]) >= size and ended[g][-1][0] >= best
            running[g] = following
            taken += [said[-1] for said, _ in following]
        if all(done):
            break
    for g in range(beams.groups):
        if not done[g]:
            for said, score in running[g]:
                order += 1
                ended[g].append((score / len(said) ** beams.length_penalty, -order, said))
                ended[g] = sorted(ended[g], reverse=True)[:size]
    return [said for _, _, said in sorted((one for group in ended for one in group), key=lambda one: -one[0])]


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_a_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, size = [(1, 4), (4, 1), (2, 2), (2, 3), (5, 1), (1, 1)][seed % 6]
    vocabulary = int(rng.integers(2 * size + 4, 20))
    table = torch.from_numpy(rng.normal(scale=2.0, size=(vocabulary + 1, vocabulary)))
    beams = Beams(groups, float(rng.choice([0.0, 0.5, 3.0])), float(rng.choice([0.0, 1.0, 1.5])))
    limit = int(rng.integers(1, 9))
    found = search(table, groups * size, beams, limit, never=(3,))
    assert ids(found) == plain(table, groups * size, beams, limit, (3,))
    policy = torch.log_softmax(table.float().double(), dim=-1)
    for one in found:
        said = one.token_ids.tolist()
        wanted = [float(policy[before, v]) for before, v in zip([-1, *said[:-1]], said, strict=True)]
        np.testing.assert_allclose(one.logprobs, wanted, atol=1e-5)
        assert one.finish_reason == ("eos" if said[-1] == EOS else "length")
