"""Drawing tokens: numbers derived by hand, and draws from a distribution."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from sightline_sampler.engines import seeds
from sightline_sampler.engines.local.sampling import Draw, Shape, draw, keep_mask

P = [0.4, 0.1, 0.3, 0.2]  # of ids 0..3; in order of likelihood: 0, 2, 3, 1
NONE = torch.empty(0, dtype=torch.long)


def one(
    uniform: float,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    suppressed: tuple[int, ...] = (),
    p: list[float] = P,
    processed: list[float] | None = None,
) -> Draw:
    shape = shaped([temperature], [top_p], [top_k], [min_p])
    return draw(
        torch.tensor([p]).log(),
        torch.tensor([uniform], dtype=torch.float64),
        shape,
        torch.tensor(suppressed, dtype=torch.long),
        None if processed is None else torch.tensor([processed]).log(),
    )


def shaped(temperature: list[float], top_p: list[float], top_k: list[int], min_p: list[float] | None = None) -> Shape:
    floors = min_p or [0.0] * len(top_k)
    return Shape(
        torch.tensor(temperature).double(),
        torch.tensor(top_p).double(),
        torch.tensor(top_k),
        torch.tensor(floors).double(),
        truncated=min(top_p) < 1 or max(top_k) > 0,
        floored=max(floors) > 0,
        greedy=min(temperature) == 0,
        unscaled=set(temperature) == {1.0},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["plain", "largest suppressed", "infinite", "not a number", "an id without mass"])
def test_one_exponential_has_the_bits_of_two(case: str, dtype: torch.dtype) -> None:
    """At temperature 1 norm and distribution come from the same exponentials, in chunks that fit a cache."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 32_000)
    match case:
        case "largest suppressed":
            logits[3, 1] = 90.0
        case "infinite":
            logits[3, 7] = torch.inf
        case "not a number":
            logits[3, 7] = torch.nan
        case "an id without mass":
            logits[:, 7] = -torch.inf
    uniform, suppressed = torch.rand(40, dtype=torch.float64), torch.tensor([0, 1, 3])
    shape = shaped([1.0] * 40, [0.9] * 40, [0] * 40)
    once = draw(logits.to(dtype), uniform, shape, suppressed)
    twice = draw(logits.to(dtype), uniform, dataclasses.replace(shape, unscaled=False), suppressed)
    for field in dataclasses.fields(Draw):
        found, wanted = getattr(once, field.name), getattr(twice, field.name)
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num()), field.name
    assert once.finite.all() == (case not in ("infinite", "not a number"))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.39, 0), (0.41, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.9999, 3)]
)
def test_the_token_is_the_first_whose_cumulated_probability_exceeds_the_number(uniform: float, token: int) -> None:
    drawn = one(uniform)
    assert drawn.tokens.tolist() == [token]
    assert drawn.logprobs.item() == pytest.approx(math.log(P[token]), abs=1e-6)
    assert drawn.behaviour.item() == pytest.approx(math.log(P[token]), abs=1e-6)


def test_suppression_and_truncation_change_behaviour_and_not_the_policy() -> None:
    # Without id 0: 1/6, 3/6, 2/6 of ids 1, 2, 3.
    drawn = one(0.5, suppressed=(0,))
    assert drawn.tokens.tolist() == [2]
    assert drawn.logprobs.item() == pytest.approx(math.log(0.3), abs=1e-6)
    assert drawn.behaviour.item() == pytest.approx(math.log(0.5), abs=1e-6)
    # The two likeliest: ids 0 and 2 with 4/7, 3/7.
    drawn = one(0.6, top_k=2)
    assert drawn.tokens.tolist() == [2]
    assert drawn.behaviour.item() == pytest.approx(math.log(3 / 7), abs=1e-6)
    # 0.4 + 0.3 is the smallest set with mass >= 0.65; with 0.75 id 3 comes in too.
    assert one(0.6, top_p=0.65).behaviour.item() == pytest.approx(math.log(3 / 7), abs=1e-6)
    assert one(0.99, top_p=0.75).tokens.tolist() == [3]
    # Of the three likeliest (4, 3, 2 of 9), 4/9 + 3/9 is the smallest set with mass >= 0.75: top-k comes first.
    assert one(0.99, top_k=3, top_p=0.75).tokens.tolist() == [2]
    # At least one token is always left.
    assert one(0.99, top_p=1e-6).tokens.tolist() == [0]


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    # Of 0.4: 0.6 keeps what has at least 0.24, ids 0 and 2 with 4/7, 3/7.
    drawn = one(0.6, min_p=0.6)
    assert drawn.tokens.tolist() == [2]
    assert drawn.behaviour.item() == pytest.approx(math.log(3 / 7), abs=1e-6)
    assert drawn.logprobs.item() == pytest.approx(math.log(0.3), abs=1e-6)
    assert {one(u, min_p=0.76).tokens.item() for u in (0.0, 0.5, 0.99)} == {0}
    # After the temperature: T = 2 takes roots, 0.1 ** 0.5 is half of 0.4 ** 0.5.
    assert {one(u / 100, min_p=0.49, temperature=2.0).tokens.item() for u in range(100)} == {0, 1, 2, 3}
    assert {one(u / 100, min_p=0.51, temperature=2.0).tokens.item() for u in range(100)} == {0, 2, 3}


def test_bent_logits_are_drawn_from_and_the_policys_are_reported() -> None:
    drawn = one(0.5, processed=[0.1, 0.8, 0.1, 1e-30])
    assert drawn.tokens.tolist() == [1]
    assert drawn.logprobs.item() == pytest.approx(math.log(0.1), abs=1e-6)
    assert drawn.behaviour.item() == pytest.approx(math.log(0.8), abs=1e-6)
    assert not one(0.5, processed=[math.nan, 1, 1, 1]).finite.item()


def test_temperature_sharpens() -> None:
    # T = 0.5 squares: 16, 1, 9, 4 of 30.
    drawn = one(0.55, temperature=0.5)
    assert drawn.tokens.tolist() == [1]
    assert drawn.behaviour.item() == pytest.approx(math.log(1 / 30), abs=1e-6)
    assert drawn.logprobs.item() == pytest.approx(math.log(0.1), abs=1e-6)


def test_greedy_takes_the_likeliest_that_is_not_suppressed() -> None:
    drawn = one(0.99, temperature=0)
    assert (drawn.tokens.item(), drawn.behaviour.item()) == (0, 0.0)
    assert drawn.logprobs.item() == pytest.approx(math.log(0.4), abs=1e-6)
    assert one(0.99, temperature=0, suppressed=(0,)).tokens.item() == 2


def test_a_token_without_probability_is_never_drawn() -> None:
    largest = float(np.nextafter(1.0, 0.0))
    for uniform in (0.0, 0.5, largest):
        assert one(uniform, p=[0.0, 0.3, 0.7, 0.0]).tokens.item() in (1, 2)
        assert one(uniform, suppressed=(3, 0)).tokens.item() in (1, 2)


def test_broken_logits_are_told() -> None:
    assert one(0.5).finite.item()
    assert not one(0.5, p=[math.nan, 1, 1, 1]).finite.item()
    assert not one(0.5, p=[math.inf, 1, 1, 1]).finite.item()


def test_draws_follow_the_distribution() -> None:
    count = 40_000
    numbers = seeds.uniforms(seeds.derive(7, count), 1)[:, 0]
    drawn = draw(
        torch.tensor([P]).log().repeat(count, 1),
        torch.from_numpy(numbers),
        shaped([1.0] * count, [1.0] * count, [0] * count),
        NONE,
    )
    found = np.bincount(drawn.tokens.numpy(), minlength=4) / count
    # Five standard deviations of a share of 0.4 of 40 000.
    np.testing.assert_allclose(found, P, atol=5 * math.sqrt(0.24 / count))


def test_rows_do_not_see_each_other_and_large_vocabularies_go_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 150, 40_000  # over the size of one part
    logits = torch.randn(rows, vocabulary, generator=generator)
    uniform = torch.rand(rows, dtype=torch.float64, generator=generator)
    processed = ([0.0, 0.7, 1.0] * 50, [1.0, 0.9] * 75, [0, 0, 0, 0, 50] * 30, [0.0, 0.0, 0.01] * 50)
    whole = draw(logits, uniform, shaped(*processed), NONE)
    for row in (0, 1, 2, 3, 4, 77, 149):
        mine = shaped(*([column[row]] for column in processed))
        alone = draw(logits[row : row + 1], uniform[row : row + 1], mine, NONE)
        assert alone.tokens.item() == whole.tokens[row].item()
        assert alone.behaviour.item() == pytest.approx(whole.behaviour[row].item(), abs=1e-9)


@hypothesis.given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12), st.floats(0.01, 1), st.integers(0, 14), st.integers(0, 1 << 62)
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_what_is_kept_is_the_smallest_set_that_suffices(z: list[float], top_p: float, top_k: int, seed: int) -> None:
    q = torch.softmax(torch.tensor([z], dtype=torch.float64), dim=-1)
    kept = keep_mask(q, torch.tensor([top_p]).double(), torch.tensor([top_k]))[0]
    inside, outside = q[0][kept], q[0][~kept]
    assert 1 <= len(inside) <= (top_k or len(z))
    if len(outside):
        assert inside.min() >= outside.max()
    if len(inside) < min(top_k or len(z), len(z)):  # cut by top_p: enough tokens, and not one more than needed
        mass = torch.sort(q[0], descending=True).values[: top_k or None].sum()
        assert inside.sum() / mass >= top_p - 1e-9
    if len(inside) > 1:
        mass = torch.sort(q[0], descending=True).values[: top_k or None].sum()
        assert (inside.sum() - inside.min()) / mass < top_p + 1e-9
    uniform = torch.from_numpy(seeds.uniforms([seed], 1)[:, 0])
    token = draw(q.log(), uniform, shaped([1.0], [top_p], [top_k]), NONE).tokens.item()
    assert kept[int(token)]


def test_a_seed_stands_for_its_numbers() -> None:
    first, second = seeds.uniforms([5, 6], 100)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(seeds.uniforms([6], 7)[0], second[:7])
    np.testing.assert_array_equal(seeds.uniforms([2**64 - 1], 3), seeds.uniforms([2**64 - 1], 3))
    assert 0 <= first.min() < first.max() < 1
    # NumPy promises Philox's stream for ever; these are its first numbers for key 5.
    np.testing.assert_array_equal(first[:3], np.random.Generator(np.random.Philox(key=5)).random(3))


def test_derived_seeds_do_not_depend_on_how_many_there_are() -> None:
    assert seeds.derive(1, 8)[:3] == seeds.derive(1, 3)
    assert len({seed for start in range(50) for seed in seeds.derive(start, 50)}) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds.derive(2**64 - 1, 100))
    assert seeds.derive(0, 2) == [DERIVED_0, DERIVED_1]


# Written down: a seed must give the same candidates in every release.
DERIVED_0, DERIVED_1 = 520810605562734633, 4059051691542397301
