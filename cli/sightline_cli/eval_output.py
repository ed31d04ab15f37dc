"""Output of `sightline eval`: a table for people, JSON for machines, progress bars on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sightline_trainer.display import draw, narrow
from sightline_trainer.evaluation.result import Result, write_result

Tell = Callable[[int, int], None]


def emit(result: Result, out: Path | None, *, details: bool, seed: int) -> None:
    """Show a result and write it to `out`; `-` prints only JSON."""
    value = result.to_json(details=details, seed=seed)
    _emit(value, out, lambda console: show(value, console))


def emit_differences(value: Mapping[str, Any], out: Path | None) -> None:
    """Show paired differences and write them to `out`."""
    _emit(dict(value), out, lambda console: show_differences(value, console))


def show_differences(value: Mapping[str, Any], console: Console) -> None:
    """Paired differences as a table."""
    table = _table("other - one", "metric", "one", "other", "change", "95 % interval", "")
    for name, row in value.items():
        low, high = _text(row["low"], "+.4f"), _text(row["high"], "+.4f")
        sure = "clear" if row["clear"] else ""
        table.add_row(
            name, _text(row["one"]), _text(row["other"]), _text(row["change"], "+.4f"), f"{low} .. {high}", sure
        )
    draw(table, console)


def _emit(value: dict[str, Any], out: Path | None, show_on: Callable[[Console], None]) -> None:
    if out is not None and str(out) == "-":
        print(json.dumps(value, indent=2))
        return
    if out is not None:
        write_result(out, value)
    show_on(Console())
    if out is not None:
        Console().print(f"[bold]result[/bold] {escape(str(out))}", soft_wrap=True)


def show(value: Mapping[str, Any], console: Console) -> None:
    """A result as tables."""
    settings = ", ".join(f"{name} {setting}" for name, setting in value["settings"].items())
    table = _table(escape(f"{value['suite']}  {settings}"), "metric", "value", "95 % interval", "of")
    for name, metric in value["metrics"].items():
        interval = "" if metric["low"] is None else f"{metric['low']:.4f} .. {metric['high']:.4f}"
        table.add_row(name, _text(metric["value"]), interval, f"{metric['numerator']} / {metric['denominator']}")
    draw(table, console)
    console.print("counts: " + ", ".join(f"{name} {number}" for name, number in value["counts"].items()), markup=False)
    for part, numbers in value.get("official", {}).items():
        console.print(f"as the official script prints it, {part}: {numbers}", markup=False)
    for text in value["differs_from_official"]:
        console.print(f"differs from the official script: {text}", markup=False)


def _table(title: str, *columns: str) -> Table:
    """A table that fits 80 columns; names and numbers are never cut."""
    table = narrow(title)
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="fold")
    return table


def _text(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


@contextmanager
def bars(out: Path | None) -> Iterator[Callable[[str], Tell]]:
    """Progress bars on stderr, one for each name; none if the output is for machines, or stderr is no terminal that can
    redraw."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = (out is not None and str(out) == "-") or not console.is_interactive
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:

        def named(name: str) -> Tell:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield named
