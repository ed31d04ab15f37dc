"""Ratios over images and their bootstrap intervals."""

import numpy as np
import pytest
from sightline.errors import InvalidInput
from sightline_trainer.evaluation.bootstrap import intervals, paired
from sightline_trainer.evaluation.ratios import Ratio, Ratios


def ratios(above: list[float], below: list[float]) -> Ratios:
    images = tuple(str(i) for i in range(len(above)))
    return Ratios(images, {"m": Ratio(np.array(above, dtype=float), np.array(below, dtype=float))})


def test_rows_of_one_image_are_one_unit_and_missing_metrics_add_nothing() -> None:
    collected = Ratios.collect([("a", {"m": (1, 2)}), ("b", {"m": (0, 1), "n": (1, 1)}), ("a", {"m": (1, 1)})])
    assert collected.images == ("a", "b")
    assert collected.of["m"].above.tolist() == [2, 0]
    assert collected.of["m"].below.tolist() == [3, 1]
    assert collected.value("m") == 2 / 4
    assert collected.of["n"].below.tolist() == [0, 1]
    again = Ratios.from_json(collected.to_json())
    assert again.images == collected.images
    assert again.values() == collected.values()


def test_a_ratio_of_nothing_is_none_and_so_is_its_interval() -> None:
    nothing = ratios([0, 0], [0, 0])
    assert nothing.value("m") is None
    assert nothing.values() == {}
    assert intervals(nothing)["m"].low is None
    assert Ratios.collect([]).values() == {}


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    # 1000 images, 300 of them hit: the standard error is sqrt(.3 * .7 / 1000) = 0.01449, 1.96 of them 0.0284.
    found = intervals(ratios([1.0] * 300 + [0.0] * 700, [1.0] * 1000), resamples=4000, seed=3)["m"]
    assert found.low == pytest.approx(0.3 - 0.0284, abs=0.003)
    assert found.high == pytest.approx(0.3 + 0.0284, abs=0.003)


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ratios(list(range(50)), [60.0] * 50)
    assert intervals(one, seed=1) == intervals(one, seed=1)
    assert intervals(one, seed=1) != intervals(one, seed=2)
    before = intervals(one, seed=1)
    monkeypatch.setattr("sightline_trainer.evaluation.bootstrap._BLOCK", 170)
    assert intervals(one, seed=1) == before


def test_captions_of_one_image_do_not_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    hits = rng.integers(0, 2, 100)
    once = Ratios.collect((str(i), {"m": (float(hit), 1.0)}) for i, hit in enumerate(hits))
    often = Ratios.collect((str(i), {"m": (float(hit), 1.0)}) for i, hit in enumerate(hits) for _ in range(9))
    assert intervals(once) == intervals(often)


def test_a_paired_interval_is_narrow_where_images_differ_and_policies_do_not() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(400)
    one = ratios(list(hard), [1.0] * 400)
    other = ratios(list(hard - 0.05), [1.0] * 400)
    found = paired(one, other)["m"]
    assert found.change == pytest.approx(-0.05)
    assert found.low == pytest.approx(-0.05)
    assert found.high == pytest.approx(-0.05)
    assert found.clear
    alone = intervals(one)["m"]
    assert alone.high is not None
    assert alone.low is not None
    assert alone.high - alone.low > 0.04
    same = paired(one, one)["m"]
    assert (same.change, same.low, same.high, same.clear) == (0.0, 0.0, 0.0, False)


def test_pairs_are_matched_by_image_not_by_position() -> None:
    one = ratios([1, 0, 0], [1, 1, 1])
    turned = Ratios(("2", "1", "0"), {"m": Ratio(np.array([0.0, 0.0, 1.0]), np.ones(3))})
    assert paired(one, turned)["m"].low == 0.0
    assert paired(one, turned)["m"].high == 0.0
    with pytest.raises(InvalidInput, match="same images"):
        paired(one, ratios([1, 0], [1, 1]))
