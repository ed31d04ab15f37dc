"""Display: a run in the terminal: one bar for the current stage, one table row for each policy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sightline_trainer.events import LEFT_OUT, Event

_ANY_WIDTH = 10_000
_VERBS = {
    "start": "starting",
    "sample": "sampling and scoring candidates",
    "pair": "building pairs",
    "update": "DPO update",
    "publish": "publishing the policy",
    "evaluate": "evaluating on held-out images",
}
_COLUMNS = (
    "iteration", "policy", "CHAIR_s", "vs base", "CHAIR_i", "cover", "CLIPScore", "tokens", "pairs", "seconds",
)  # fmt: skip


def results_table(rows: list[Mapping[str, float]]) -> Table:
    """One row for each policy version, with changes against the base model beside CHAIR_s. Fits 80 columns."""
    table = narrow("policies on held-out images")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        base, now = rows[0].get("chair_s"), row.get("chair_s")
        change = f"{now / base - 1:+.0%}" if base and now is not None and row is not rows[0] else ""
        table.add_row(
            f"{row['iteration']:.0f}",
            f"v{row['policy_version']:.0f}",
            _number(row, "chair_s", ".3f"),
            change,
            _number(row, "chair_i", ".3f"),
            _number(row, "cover", ".3f"),
            _number(row, "clip_score", ".2f"),
            _number(row, "mean_tokens", ".1f"),
            f"{row['pairs']:.0f}",
            f"{row['seconds']:.0f}",
        )
    return table


def narrow(title: str) -> Table:
    """A table without frames and with one space between columns, so that names and numbers fit 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)


def draw(table: Table, console: Console) -> None:
    """Print a table as wide as the console; wider if columns that must not wrap (names, numbers) would be cut."""
    anything = console.options.update(max_width=_ANY_WIDTH)
    for column in table.columns:
        if column.no_wrap:
            cells = [column.header, *column.cells]
            column.min_width = max(Measurement.get(console, anything, cell).maximum for cell in cells)
    before = console.width
    console.width = max(before, Measurement.get(console, anything, table).minimum)
    console.print(table)
    console.width = before


def _number(row: Mapping[str, float], name: str, form: str) -> str:
    """A metric, or a dash where it is not defined (no truth, no mention, no scored caption)."""
    return format(row[name], form) if name in row else "-"


class Display:
    """An observer that draws bars; if the output is no terminal, or one that cannot redraw, it prints a line for each
    stage."""

    def __init__(
        self, iterations: int, console: Console | None = None, rows: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """`rows`: those of policies that were measured before."""
        self.console = console or Console()
        self.iterations = iterations
        self.rows = list(rows)
        self._stage: tuple[str, int] | None = None
        self._since = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_interactive:
            self._live.stop()
        if self.rows:
            draw(results_table(self.rows), self.console)

    def __call__(self, event: Event) -> None:
        if event.stage in ("iteration", "end"):
            if event.stage == "iteration":
                self.rows = [row for row in self.rows if row["iteration"] < event.metrics["iteration"]]
                self.rows.append(event.metrics)
                self._line(event)
            return
        if LEFT_OUT in event.metrics and event.message:
            self.console.print(event.message, soft_wrap=True, markup=False, highlight=False)
            return
        if event.stage == "sample" and self._stage in (("update", event.iteration - 1), ("pair", event.iteration - 1)):
            return  # sampled ahead, while the update trains
        where = f"iteration {event.iteration}/{self.iterations}" if event.iteration else "base model"
        description = f"{where}: {_VERBS[event.stage]}"
        if self._stage != (event.stage, event.iteration):
            self._stage, self._since = (event.stage, event.iteration), time.monotonic()
            self._progress.reset(self._task, description=description, total=event.total or None)
            if not self.console.is_interactive:
                self.console.print(description, markup=False)
        self._progress.update(self._task, completed=event.done, total=event.total or None)

    def _line(self, event: Event) -> None:
        if not self.console.is_interactive:
            row = event.metrics
            self.console.print(
                f"policy v{row['policy_version']:.0f}: CHAIR_s {_number(row, 'chair_s', '.3f')}  "
                f"cover {_number(row, 'cover', '.3f')}  CLIPScore {_number(row, 'clip_score', '.2f')}  "
                f"tokens {_number(row, 'mean_tokens', '.1f')}"
            )

    def _render(self) -> RenderableType:
        return Group(results_table(self.rows), self._progress) if self.rows else self._progress
