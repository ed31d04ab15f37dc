"""The leaderboard's figures, computed by hand, from kept runs alone."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # behind tests/, which has a families.py too

import leaderboard
import neutral
import standings
from sightline_chassis.layers import SettingsError
from sightline_trainer.recipe import load_recipe


def counts(chair: list[int], tokens: list[int], cover: list[int]) -> dict[str, Any]:
    ones = [1] * len(chair)
    plain = {name: [ones, ones] for name in ("chair_i", "pope_f1", "attribute_accuracy", "clip_score")}
    return {**plain, "chair_s": [chair, ones], "mean_tokens": [tokens, ones], "cover": [cover, ones]}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Four images. Base: two long captions, both wrong, and two short ones, right; the policy has three short ones."""
    base = counts([1, 1, 0, 0], [30, 30, 9, 9], [1, 0, 1, 1])
    final = counts([1, 0, 0, 0], [30, 9, 9, 9], [1, 1, 1, 1])
    without = counts([1, 1, 0, 0], [30, 30, 9, 9], [1, 0, 1, 1])
    facts = {"recipe": "x", "seed": 0, "pairs": [5], "cpu_seconds": 7, "supervision": "none", "trained": True}
    for name, what in (("base-0", base), ("x-0", final), ("x-without-0", without)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**facts, "counts": what}))
    return tmp_path


def test_figures_of_four_images_by_hand(kept: Path) -> None:
    (run,) = standings.read(kept, "x")
    figures = {name: figure(run) for name, figure in standings.FIGURES.items()}
    assert figures["chair_s_cut"] == pytest.approx(1 - 0.25 / 0.5)
    assert figures["cover_change"] == pytest.approx(0.25)
    assert figures["length_change"] == pytest.approx(57 / 78 - 1)
    assert figures["pope_f1_change"] == figures["attribute_change"] == 0.0
    # Base captions as short as the policy's are wrong once in four: shortness made the cut.
    assert figures["chair_s_cut_at_equal_length"] == pytest.approx(0.0)
    assert standings.over_without(run) == pytest.approx((0.5 - 0.25) / 0.5)


def test_an_interval_holds_the_figure_and_a_run_without_its_base_is_not_told(kept: Path) -> None:
    runs = standings.read(kept, "x")
    value, low, high = standings.with_interval(runs, standings.FIGURES["cover_change"])
    assert (value, low <= value <= high) == (0.25, True)
    (kept / "base-0.json").unlink()
    assert standings.read(kept, "x") == []


def test_decoding_alone_is_compared_with_the_base_model(kept: Path) -> None:
    facts = json.loads((kept / "x-0.json").read_text())
    (kept / "vdd-0.json").write_text(json.dumps({**facts, "recipe": "vdd", "trained": False}))
    (run,) = standings.read(kept, "vdd")
    assert standings.over_without(run) == standings.FIGURES["chair_s_cut"](run) == pytest.approx(0.5)


def test_every_recipe_stands_on_the_board_and_reads_with_its_own_part_neutral() -> None:
    recipes = {path.stem for path in (leaderboard.ROOT / "recipes").glob("*.yaml")}
    assert set(leaderboard.RECIPES) == recipes
    for name in leaderboard.WITHOUT:
        file = leaderboard.ROOT / f"recipes/{name}.yaml"
        own, neutral = (
            load_recipe(file, leaderboard.overrides(of, 0, "localhost:1", "localhost:2"))
            for of in (name, f"{name}-without")
        )
        assert leaderboard.digest(own) != leaderboard.digest(neutral)
        assert own.iterations == neutral.iterations > 0
        for one in set(leaderboard.WITHOUT[name]) - set(leaderboard._LOTS):  # illume has no gap to switch off
            others = [
                key for key in leaderboard.overrides(f"{name}-without", 0, "localhost:1", "localhost:2") if key != one
            ]
            with suppress(SettingsError):  # the others need it
                assert leaderboard.digest(load_recipe(file, others)) != leaderboard.digest(neutral), f"{name}: {one}"


def test_tuned_values_are_those_that_the_rule_takes_from_four_tries_of_each_method() -> None:
    """The largest cut at equal length among those whose cover falls by at most 0.05; none: the file's own."""
    tries = [json.loads(line) for line in (leaderboard.RESULTS / "tries.jsonl").read_text().splitlines()]
    tried: dict[str, list[Any]] = {}
    for each in tries:
        found = each.get("decoded", each["plain"])
        tried.setdefault(each["recipe"], []).append((found, each["values"]))
    assert len(tried) == 23
    for name, ways in tried.items():
        assert (len(ways), ways[0][1]) == (4, [])
        allowed = [way for way in ways if way[0]["cover_change"] >= -0.05]
        best = max(allowed, key=lambda way: way[0]["chair_s_cut_at_equal_length"], default=ways[0])
        assert sorted(leaderboard.TUNED.get(name, ())) == sorted(best[1]), name


def test_lots_are_drawn_anew_for_each_picture_and_stay() -> None:
    texts = ["a star .", "a ring ."]
    one, other = neutral.lots([], ["what ?"] * 2, texts), neutral.lots([], ["what ?"] * 2, [*texts, "a hole ."])
    assert one == neutral.lots([], ["what ?"] * 2, texts)
    assert one != other[:2]
    assert all(0.0 <= lot <= 1.0 for lot in one + other)
