"""docs/performance.md shows the committed results: a table row that names a figure has its value."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `(\w+)`[^|]*\| \**(-?[\d.,]+)")
PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
SHOWN = [found.groups() for line in PAGE.splitlines() if (found := _ROW.match(line))]


def committed(name: str) -> list[float]:
    """The values of a figure in all files of results; some were measured on several models or ways."""
    files = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")]
    return [row["value"] for file in files for row in file["rows"] if row["name"] == name]


def test_the_page_names_figures() -> None:
    assert len(SHOWN) > 15


@pytest.mark.parametrize(("name", "shown"), SHOWN)
def test_a_named_figure_has_its_committed_value(name: str, shown: str) -> None:
    digits = len(shown.partition(".")[2])
    values = committed(name)
    assert any(round(value, digits) == pytest.approx(float(shown)) for value in values), f"{name}: {values}"
