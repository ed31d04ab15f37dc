"""Wording and warnings, computed by hand."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sightline_trainer.evaluation.wording import Shift, shift
from sightline_trainer.pairs.preferred import preferred
from sightline_trainer.report.meanings import worries


def test_the_phrase_that_moved_most_is_found() -> None:
    """ "i see" begins 20 of 100 captions before and 90 now; chance alone moves nothing."""
    before = ["i see a star ."] * 20 + ["there is a star ."] * 80
    now = ["i see a star ."] * 90 + ["there is a star ."] * 10
    moved = shift(before, now)
    assert moved is not None
    assert (moved.before, moved.now, round(moved.size, 2)) in {(0.2, 0.9, 0.7), (0.8, 0.1, 0.7)}
    assert shift(before, before) is None
    assert shift(["a", "b"], ["b", "b"]) is None  # two captions say nothing
    assert shift([], before) is None
    assert Shift("x", 0.1, 0.6).size == 0.5


BASE = {
    "iteration": 0, "chair_s": 0.5, "chair_s_low": 0.45, "chair_s_high": 0.55, "cover": 0.9, "cover_low": 0.88,
    "cover_high": 0.92, "mean_tokens": 24.0, "clip_score": 55.0, "clip_score_low": 54.0, "clip_score_high": 56.0,
    "degenerate": 0.0, "degenerate_low": 0.0, "degenerate_high": 0.0, "attribute_accuracy": 0.9,
    "attribute_accuracy_low": 0.88, "attribute_accuracy_high": 0.92,
}  # fmt: skip
FINE = {
    **BASE,
    "iteration": 1,
    "chair_s": 0.2,
    "chair_s_change_low": -0.35,
    "chair_s_change_high": -0.25,
    "wording": 0.2,
}


def said(**values: float) -> set[str]:
    return set(worries([BASE, {**FINE, **values}], {}))


def test_each_signal_has_its_bound() -> None:
    assert said() == set()
    assert said(wording=0.41) == {"wording"}
    assert said(mean_tokens=30.1) == {"mean_tokens"}  # 25.4 % longer
    assert said(mean_tokens=29.9) == set()
    assert said(mean_tokens=17.9) == {"mean_tokens"}
    assert said(cover_change_high=-0.04) == {"cover"}
    assert said(cover_change_high=-0.02) == set()
    assert said(chair_s_change_low=0.01) == {"chair_s"}
    assert said(degenerate=0.2, degenerate_low=0.1) == {"degenerate"}
    assert said(attribute_accuracy=0.8, attribute_accuracy_high=0.87) == {"attribute_accuracy"}
    assert said(clip_score=52.0, clip_score_high=53.9) == {"clip_score"}
    assert worries([BASE], {}) == {}


def test_what_the_reward_likes_is_told_of_pairs_that_the_policy_wrote_both_sides_of(tmp_path: Path) -> None:
    """Forty pairs: chosen "i see a red star ." of six words, rejected "there is a star ." of five; ten do not count."""

    def row(chosen: str, rejected: str, source: str) -> dict[str, object]:
        sides = {"chosen": chosen, "rejected": rejected}
        said = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        return {**said, "chosen_source": source, "rejected_source": "policy"}

    rows = [row("i see a red star .", "there is a star .", "policy")] * 40
    rows += [row("a very long annotation of many words", "x", "reference")] * 10
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert preferred(tmp_path / "pairs.parquet") == {"pairs_length": pytest.approx(6 / 5 - 1), "pairs_wording": 1.0}
    pq.write_table(pa.Table.from_pylist(rows[:31]), tmp_path / "pairs.parquet")
    assert preferred(tmp_path / "pairs.parquet") == {}
    assert preferred(tmp_path / "none.parquet") == {}
    assert said(pairs_wording=0.41) == said(pairs_length=-0.26) == said(pairs_length=0.26) == {"pairs"}
    assert said(pairs_wording=0.4, pairs_length=0.25) == set()
