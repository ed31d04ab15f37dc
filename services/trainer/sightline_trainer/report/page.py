"""Page: a run, or several side by side, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import jinja2
from markupsafe import Markup

from sightline_trainer.report import curves
from sightline_trainer.report.gallery import changes, contests
from sightline_trainer.report.history import History, Row, when
from sightline_trainer.report.meanings import MEANINGS, worries

HERE = Path(__file__).parent
PICTURES = 48
"""Default number of pictures in a gallery."""

TITLES = {
    "chair_s": "CHAIR_s: captions with a wrong object",
    "chair_i": "CHAIR_i: mentions that are wrong",
    "cover": "Cover: objects that are named",
    "clip_score": "CLIPScore",
    "mean_tokens": "Length, tokens",
    "pope_f1": "POPE, F1",
    "kl_to_base": "KL from the base model, nats a response",
}
"""Metric -> title of its curve."""

SPENT = ("sample", "pair", "update", "publish", "evaluate")


def page(histories: Sequence[History], *, pictures: int = PICTURES) -> str:
    """The page.

    Args:
        histories: one run, with galleries and lineage, or several, compared.
        pictures: number of pictures per gallery; 0 omits the galleries.

    Raises:
        SightlineError: a dataset that the run names can't be read.
    """
    compared = len(histories) > 1
    histories = _told_apart(histories)
    one = histories[0]
    shown, worst = changes(one, pictures) if pictures and not compared else ([], [])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        title=" against ".join(each.name for each in histories),
        subtitle="alignment run" if not compared else f"{len(histories)} alignment runs",
        runs=histories,
        compared=compared,
        charts=_compared(histories) if compared else _charts(one),
        worries={each.name: list(chain(*worries(each.rows, each.updates).values())) for each in histories},
        changes=shown,
        regressions=worst,
        contests=contests(one, pictures) if pictures and not compared else [],
        when=when,
        css=_text("report.css"),
        js=_text("report.js"),
    )


def _told_apart(histories: Sequence[History]) -> list[History]:
    """Name runs by the shortest ends of their paths that are all distinct."""
    paths = [each.run.root.parts for each in histories]
    names = [each.name for each in histories]
    for length in range(2, max(map(len, paths)) + 1):
        if len(set(names)) == len(set(paths)):
            break
        names = ["/".join(path[-length:]) for path in paths]
    return [replace(each, label=name) for each, name in zip(histories, names, strict=True)]


def _text(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))  # noqa: S704 - our own file


@dataclass(frozen=True)
class Chart:
    """A curve: its SVG ("" if there is nothing to draw), what it means and when to worry, and its warnings."""

    title: str
    svg: str
    meaning: str
    worries: Sequence[str] = ()


def _charts(history: History) -> list[Chart]:
    rows, updates = history.rows, history.updates
    found = worries(rows, updates)

    def measured(curve: str, title: str, names: Mapping[str, str]) -> Chart:
        return Chart(title, _measured(title, rows, names), MEANINGS[curve], found.get(curve, ()))

    def trained(curve: str, title: str, names: Mapping[str, str]) -> Chart:
        return Chart(title, _trained(title, updates, names), MEANINGS[curve], found.get(curve, ()))

    charts = [
        measured("chair_s", TITLES["chair_s"], {"sampled": "chair_s", "greedy": "greedy_chair_s"}),
        measured("chair_i", TITLES["chair_i"], {"sampled": "chair_i", "greedy": "greedy_chair_i"}),
        measured("cover", TITLES["cover"], {"sampled": "cover", "greedy": "greedy_cover"}),
        measured("clip_score", TITLES["clip_score"], {"held out": "clip_score"}),
        measured("mean_tokens", TITLES["mean_tokens"], {"sampled": "mean_tokens", "greedy": "greedy_mean_tokens"}),
        measured("pope_f1", TITLES["pope_f1"], {"F1": "pope_f1"}),
        measured("kl_to_base", TITLES["kl_to_base"], {"KL": "kl_to_base"}),
        trained("logps", "Log-probs of the pairs' texts, nats", {"chosen": "chosen_logp", "rejected": "rejected_logp"}),
        trained("margin", "Margin of DPO's rewards", {"margin": "margin"}),
        trained("accuracy", "Preference accuracy", {"accuracy": "accuracy"}),
        _kept(history.counts),
        _stages(history.seconds),
    ]
    return [chart for chart in charts if chart.svg]


def _measured(title: str, rows: Sequence[Row], names: Mapping[str, str]) -> str:
    series = {label: [(row["iteration"], row[key]) for row in rows if key in row] for label, key in names.items()}
    bands = {
        label: [(row["iteration"], row[f"{key}_low"], row[f"{key}_high"]) for row in rows if f"{key}_low" in row]
        for label, key in names.items()
    }
    return curves.lines(title, {label: points for label, points in series.items() if points}, bands)


def _trained(title: str, updates: Mapping[int, Row], names: Mapping[str, str]) -> str:
    series = {
        label: [(float(number), found[key]) for number, found in sorted(updates.items()) if key in found]
        for label, key in names.items()
    }
    return curves.lines(title, {label: points for label, points in series.items() if points})


def _kept(counts: Mapping[int, Mapping[str, int]]) -> Chart:
    """Prompts of each iteration: those with pairs, and why the others have none."""
    reasons = _names(found for found in counts.values())
    parts = {"pairs": {number: float(found.get("pairs", 0)) for number, found in counts.items()}}
    for reason in reasons:
        if reason.startswith(("prompt_", "pair_")):
            label = reason.partition("_")[2].replace("_", " ")
            parts[label] = {number: float(found.get(reason, 0)) for number, found in counts.items()}
    title = "Pairs kept, and why others were dropped"
    return Chart(title, curves.bars(title, parts), MEANINGS["pairs"])


def _stages(seconds: Mapping[int, Mapping[str, float]]) -> Chart:
    parts = {
        stage: {number: spent.get(stage, 0.0) for number, spent in sorted(seconds.items())}
        for stage in SPENT
        if any(stage in spent for spent in seconds.values())
    }
    title = "Seconds of each stage"
    return Chart(title, curves.bars(title, parts), MEANINGS["seconds"])


def _names(found: Iterable[Mapping[str, int]]) -> list[str]:
    return sorted({name for each in found for name in each if name != "pairs"})


def _compared(histories: Sequence[History]) -> list[Chart]:
    charts = []
    for key, title in TITLES.items():
        series = {each.name: [(row["iteration"], row[key]) for row in each.rows if key in row] for each in histories}
        svg = curves.lines(title, {label: points for label, points in series.items() if points})
        charts.append(Chart(title, svg, MEANINGS[key], _of_runs(histories, key)))
    return [chart for chart in charts if chart.svg]


def _of_runs(histories: Sequence[History], curve: str) -> list[str]:
    """The warnings of a curve, each with its run."""
    return [f"{each.name}: {told}" for each in histories for told in worries(each.rows, each.updates).get(curve, ())]
