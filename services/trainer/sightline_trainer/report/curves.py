"""Curves: charts as SVG text. Colours are the page's variables, so a chart follows its light and dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, RULE = "#010101", "#020202"
SERIES = [f"#0300{number:02d}" for number in range(1, 9)]
"""Stand-ins for the page's colours, since matplotlib needs real ones."""

Point = tuple[float, float]
Band = tuple[float, float, float]


def lines(title: str, series: Mapping[str, Sequence[Point]], bands: Mapping[str, Sequence[Band]] | None = None) -> str:
    """Lines over iterations.

    Args:
        title: the text for screen readers; the page shows it above.
        series: label -> (x, y) points.
        bands: label -> (x, low, high), drawn as an area behind the line with that label.

    Returns:
        An `<svg>` element, or "" if there is nothing to draw.
    """
    if not any(series.values()):
        return ""
    figure, axes = _axes()
    for (label, points), colour in zip(series.items(), SERIES, strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.8, color=colour, label=label)
        if bands and bands.get(label):
            x, low, high = zip(*bands[label], strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    _iterations(axes, [x for points in series.values() for x, _ in points])
    if len(series) > 1:
        _legend(axes)
    return _svg(figure, title)


def bars(title: str, parts: Mapping[str, Mapping[int, float]]) -> str:
    """Stacked bars, one for each iteration. `parts`: label -> iteration -> height. "" if there is nothing to draw."""
    numbers = sorted({number for heights in parts.values() for number in heights})
    if not numbers:
        return ""
    figure, axes = _axes()
    floor = dict.fromkeys(numbers, 0.0)
    for at, (label, heights) in enumerate(parts.items()):
        tops = [heights.get(number, 0.0) for number in numbers]
        colour = SERIES[at % len(SERIES)]
        axes.bar(numbers, tops, 0.6, bottom=list(floor.values()), color=colour, label=label, linewidth=0)
        floor = {number: floor[number] + top for number, top in zip(numbers, tops, strict=True)}
    _iterations(axes, numbers)
    _legend(axes)
    return _svg(figure, title)


def _iterations(axes: Axes, numbers: Sequence[float]) -> None:
    """Whole numbers on the x axis, even if there is only one."""
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _legend(axes: Axes) -> None:
    """Place the legend above the lines, so that it hides none."""
    axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0
    )


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    figure.patch.set_alpha(0)
    figure.axes[0].patch.set_alpha(0)
    out = io.StringIO()
    # Keep text as text, and ids equal between renderings.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    text = out.getvalue()
    text = text[text.index("<svg") :]
    colours = {INK: "var(--ink)", RULE: "var(--rule)"} | {c: f"var(--s{n})" for n, c in enumerate(SERIES, 1)}
    for stand_in, name in colours.items():
        text = text.replace(stand_in, name)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;]*;", "", text)  # the page's own font
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
