"""`sightline report`: a run, or several side by side, as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from sightline.errors import InvalidInput


def report(runs: Sequence[Path], out: Path | None, pictures: int, as_json: bool) -> None:
    """Write the page and say where it is.

    Raises:
        NotFound: one of the directories holds no run.
        InvalidInput: the packages of the page are not installed.
    """
    path = write(runs, out, pictures)
    if as_json:
        print(json.dumps({"report": str(path)}))
    else:
        Console().print(f"[bold]report[/bold] {path}", soft_wrap=True)


def write(runs: Sequence[Path], out: Path | None = None, pictures: int | None = None) -> Path:
    """Write the page; by default into the run's own directory, or as report.html here where several are compared."""
    try:
        from sightline_trainer.report.history import History
        from sightline_trainer.report.page import PICTURES, page
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the report needs {error.name}: pip install 'sightline[report,trainer]'", reason="PACKAGE_MISSING"
        ) from error
    histories = [History.read(run) for run in runs]
    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(histories, pictures=PICTURES if pictures is None else pictures), encoding="utf-8")
    return path
