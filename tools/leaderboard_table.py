"""Write the table of docs/methods.md from the result of `make leaderboard` (benchmarks/results/leaderboard.json).

    python tools/leaderboard_table.py    # `make leaderboard` ends with it

The table stands between two comments, `<!-- table of ... -->` and `<!-- end of the table -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/leaderboard.json"
PAGE = ROOT / "docs/methods.md"
FIGURES = {
    "chair_s_cut": "cut of CHAIR_s",
    "chair_s_cut_at_equal_length": "at equal length",
    "over_without": "over itself without its part",
    "cover_change": "cover",
    "pope_f1_change": "POPE F1",
    "attribute_change": "attributes",
    "length_change": "length",
}
_PERCENT = ("chair_s_cut", "chair_s_cut_at_equal_length", "over_without", "length_change")
_MARKED = re.compile(
    r"(<!-- table of benchmarks/results/leaderboard\.json -->\n).*?(<!-- end of the table -->)", re.DOTALL
)
Rows = Mapping[str, Mapping[str, Any]]


def rows(result: Path = RESULT) -> Rows:
    """The result's rows by name."""
    return {row["name"]: row for row in json.loads(result.read_text())["rows"]}


def table(measured: Rows) -> str:
    """A table in Markdown, one line a recipe, the largest cut first."""
    head = ("recipe", "supervision", "seeds", *FIGURES.values(), "CPU s")
    names = [name.removesuffix("_cpu_seconds") for name in measured if name.endswith("_cpu_seconds")]
    names.sort(key=lambda name: -measured[f"{name}_chair_s_cut"]["value"])
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *(_line(name, measured) for name in names))]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join([*lines, ""])


def _line(name: str, measured: Rows) -> tuple[str, ...]:
    facts = measured[f"{name}_chair_s_cut"]["detail"]
    cells = (_cell(figure, measured.get(f"{name}_{figure}")) for figure in FIGURES)
    seeds = ", ".join(map(str, facts["seeds"]))
    return f"`{name}`", facts["supervision"], seeds, *cells, f"{measured[f'{name}_cpu_seconds']['value']:.0f}"


def _cell(figure: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    value, low, high = row["value"], row["detail"]["low"], row["detail"]["high"]
    if figure in _PERCENT:
        return f"{100 * value:.0f} % ({100 * low:.0f} .. {100 * high:.0f})"
    return f"{value:+.3f} ({low:+.3f} .. {high:+.3f})"


def filled(text: str, measured: Rows) -> str:
    """The page with a new table."""
    return _MARKED.sub(lambda found: found[1] + table(measured) + found[2], text)


def main() -> None:
    """Write the page's table."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
