"""Page: a run, or several side by side, as one HTML text that asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from sightline_trainer.report import curves
from sightline_trainer.report.gallery import changes, contests
from sightline_trainer.report.history import History, Row, when

HERE = Path(__file__).parent
PICTURES = 48
"""Pictures of a gallery."""

SPENT = ("sample", "pair", "update", "publish", "evaluate")


def page(histories: Sequence[History], *, pictures: int = PICTURES, live: str = "") -> str:
    """The page.

    Args:
        histories: one run, with galleries and lineage, or several, compared.
        pictures: pictures of each gallery; 0 leaves the galleries out.
        live: what changes when the page should be loaded again, for a page that is served; "" for a file.

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
        changes=shown,
        regressions=worst,
        contests=contests(one, pictures) if pictures and not compared else [],
        when=when,
        live=live,
        css=_text("report.css"),
        js=_text("report.js"),
    )


def _told_apart(histories: Sequence[History]) -> list[History]:
    """Runs are called by as much of their paths' ends as it takes to have a name for each."""
    paths = [each.run.root.parts for each in histories]
    names = [each.name for each in histories]
    for length in range(2, max(map(len, paths)) + 1):
        if len(set(names)) == len(set(paths)):
            break
        names = ["/".join(path[-length:]) for path in paths]
    return [replace(each, label=name) for each, name in zip(histories, names, strict=True)]


def _text(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))  # noqa: S704 - our own file


Chart = tuple[str, str]
"""Its title and its SVG, "" where there is nothing to draw."""


def _charts(history: History) -> list[Chart]:
    rows, updates = history.rows, history.updates
    charts = [
        _measured("CHAIR_s: captions with a wrong object", rows, {"sampled": "chair_s", "greedy": "greedy_chair_s"}),
        _measured("CHAIR_i: mentions that are wrong", rows, {"sampled": "chair_i", "greedy": "greedy_chair_i"}),
        _measured("Cover: objects that are named", rows, {"sampled": "cover", "greedy": "greedy_cover"}),
        _measured("CLIPScore", rows, {"held out": "clip_score"}),
        _measured("Length, tokens", rows, {"sampled": "mean_tokens", "greedy": "greedy_mean_tokens"}),
        _measured("POPE, F1", rows, {"F1": "pope_f1"}),
        _trained("KL to the reference, nats", updates, {"KL": "kl_to_reference"}),
        _trained("Log-probs of a response, nats", updates, {"chosen": "logps_chosen", "rejected": "logps_rejected"}),
        _trained("Margin of DPO's rewards", updates, {"margin": "rewards_margins"}),
        _trained("Preference accuracy", updates, {"accuracy": "rewards_accuracies"}),
        _kept(history.counts),
        _stages(history.seconds),
    ]
    return [chart for chart in charts if chart[1]]


def _measured(title: str, rows: Sequence[Row], names: Mapping[str, str]) -> Chart:
    series = {label: [(row["iteration"], row[key]) for row in rows if key in row] for label, key in names.items()}
    bands = {
        label: [(row["iteration"], row[f"{key}_low"], row[f"{key}_high"]) for row in rows if f"{key}_low" in row]
        for label, key in names.items()
    }
    return title, curves.lines(title, {label: points for label, points in series.items() if points}, bands)


def _trained(title: str, updates: Mapping[int, Row], names: Mapping[str, str]) -> Chart:
    series = {
        label: [(float(number), found[key]) for number, found in sorted(updates.items()) if key in found]
        for label, key in names.items()
    }
    return title, curves.lines(title, {label: points for label, points in series.items() if points})


def _kept(counts: Mapping[int, Mapping[str, int]]) -> Chart:
    """Prompts of each iteration: those with pairs, and why the others have none."""
    reasons = _names(found for found in counts.values())
    parts = {"pairs": {number: float(found.get("pairs", 0)) for number, found in counts.items()}}
    for reason in reasons:
        if reason.startswith(("prompt_", "pair_")):
            label = reason.partition("_")[2].replace("_", " ")
            parts[label] = {number: float(found.get(reason, 0)) for number, found in counts.items()}
    title = "Pairs kept, and why others were dropped"
    return title, curves.bars(title, parts)


def _stages(seconds: Mapping[int, Mapping[str, float]]) -> Chart:
    parts = {
        stage: {number: spent.get(stage, 0.0) for number, spent in sorted(seconds.items())}
        for stage in SPENT
        if any(stage in spent for spent in seconds.values())
    }
    title = "Seconds of each stage"
    return title, curves.bars(title, parts)


def _names(found: Iterable[Mapping[str, int]]) -> list[str]:
    return sorted({name for each in found for name in each if name != "pairs"})


def _compared(histories: Sequence[History]) -> list[Chart]:
    titles = {"chair_s": "CHAIR_s", "chair_i": "CHAIR_i", "cover": "Cover", "clip_score": "CLIPScore"}
    titles |= {"mean_tokens": "Length, tokens", "pope_f1": "POPE, F1"}
    charts = []
    for key, title in titles.items():
        series = {each.name: [(row["iteration"], row[key]) for row in each.rows if key in row] for each in histories}
        charts.append((title, curves.lines(title, {label: points for label, points in series.items() if points})))
    return [chart for chart in charts if chart[1]]
