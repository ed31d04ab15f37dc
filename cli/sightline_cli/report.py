"""`sightline report`: a run, or several side by side, as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape


def report(runs: Sequence[Path], out: Path | None, pictures: int, as_json: bool) -> None:
    """Write the page and print its path.

    Raises:
        NotFound: one of the directories holds no run.
    """
    path = write(runs, out, pictures)
    if as_json:
        print(json.dumps({"report": str(path)}))
    else:
        Console().print(f"[bold]report[/bold] {escape(str(path))}", soft_wrap=True)


def write(runs: Sequence[Path], out: Path | None = None, pictures: int | None = None) -> Path:
    """Write the page; by default into the run's directory, or as report.html here if several runs are compared."""
    from sightline_trainer.report.history import History
    from sightline_trainer.report.page import PICTURES, page

    histories = [History.read(run) for run in runs]
    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(histories, pictures=PICTURES if pictures is None else pictures), encoding="utf-8")
    return path
