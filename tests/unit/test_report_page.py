"""The report's page, made from a run's files."""

from pathlib import Path

from sightline_trainer.report.history import History
from sightline_trainer.report.page import page
from sightline_trainer.runs import RunDirectory

RECIPE = {"name": "clip_dpo", "model": "llava", "seed": 0}


def history(root: Path, chair_s: float) -> History:
    rows = [
        {"iteration": float(number), "policy_version": float(number), "chair_s": chair_s, "pairs": 1.0, "seconds": 1.0}
        for number in (0, 1)
    ]
    return History(RunDirectory(root), RECIPE, {}, rows)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("mon/demo", "tue/demo", "tue/other"))
    found = page([history(first, 0.125), history(second, 0.375), history(other, 0.5)])
    for name in ("mon/demo", "tue/demo", "tue/other"):
        assert f'<h2 id="{name}">{name}</h2>' in found
        assert f"<tr><td>{name}</td>" in found
    assert '<h2 id="demo">' in page([history(first, 0.125), history(other, 0.5)])
