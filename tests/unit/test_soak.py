"""The judgements of `make soak`: which answers are right, and whether anything has grown."""

import sys

import pytest
from running import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from soak import Growth, equal


@pytest.mark.parametrize(
    ("kind", "got", "meant", "same"),
    [
        ("score", [20.0, 30.0], [20.01, 30.0], True),
        ("score", [20.0, 30.0], [20.1, 30.0], False),
        ("score", [20.0], [20.0, 30.0], False),
        ("embed", [float("nan")], [1.0], False),
        ("sample", [[5, 6, 2], [-0.5, -0.1, -0.2]], [[5, 6, 2], [-0.5, -0.1005, -0.2]], True),
        ("sample", [[5, 7, 2], [-0.5, -0.1, -0.2]], [[5, 6, 2], [-0.5, -0.1, -0.2]], False),
        ("sample", [[5, 6, 2], [-0.5, -0.2, -0.2]], [[5, 6, 2], [-0.5, -0.1, -0.2]], False),
        ("sample", [[5, 6], [-0.5, -0.1]], [[5, 6, 2], [-0.5, -0.1, -0.2]], False),
        ("score_tokens", [[-0.5, -0.1]], [[-0.5, -0.1]], True),
        ("score_tokens", [[-0.5, -0.3]], [[-0.5, -0.1]], False),
    ],
)
def test_an_answer_is_right_within_rounding(kind: str, got: list, meant: list, same: bool) -> None:
    assert equal(kind, got, meant) is same


@pytest.mark.parametrize(
    ("before", "after", "flat"),
    [
        ((900.0, 60), (900.0, 60), True),
        ((900.0, 60), (944.0, 70), True),
        ((100.0, 60), (115.0, 60), True),
        ((900.0, 60), (950.0, 60), False),
        ((900.0, 60), (800.0, 80), False),
    ],
)
def test_flat_is_within_its_bounds(before: tuple[float, int], after: tuple[float, int], flat: bool) -> None:
    assert Growth("scorer", before, after).flat is flat
