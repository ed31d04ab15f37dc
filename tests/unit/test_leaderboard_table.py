"""The leaderboard's table in docs/methods.md is that of the committed result."""

import sys

from running import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from leaderboard_table import PAGE, filled, rows, table

ROW = {"value": 0.1234, "detail": {"low": -0.056, "high": 0.3, "seeds": [0, 2], "supervision": "none"}}


def test_the_table_is_that_of_the_result() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "<!-- table of benchmarks/results/leaderboard.json -->" in text
    assert filled(text, rows()) == text, "run tools/leaderboard_table.py"


def test_cuts_are_percent_changes_have_a_sign_and_what_nobody_measured_is_empty() -> None:
    measured = {
        **{f"small_{figure}": ROW for figure in ("chair_s_cut", "chair_s_cut_at_equal_length", "cover_change")},
        "small_cpu_seconds": {"value": 98.6},
        "large_chair_s_cut": {**ROW, "value": 0.2},
        "large_cpu_seconds": {"value": 7},
    }
    head, _, first, second = table(measured).splitlines()
    assert head.startswith("| recipe | supervision | seeds | cut of CHAIR_s |")
    assert first == "| `large` | none | 0, 2 | 20 % (-6 .. 30) |  |  |  |  |  |  | 7 |"
    cut = "12 % (-6 .. 30)"
    assert second == f"| `small` | none | 0, 2 | {cut} | {cut} |  | +0.123 (-0.056 .. +0.300) |  |  |  | 99 |"
