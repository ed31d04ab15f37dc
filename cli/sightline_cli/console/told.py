"""What the console shows of runs: numbers, verdict, lineage, galleries, and two runs compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sightline.runs import MetricChange, RunComparison, RunPicture, RunPolicy, RunText
from sightline_trainer.report import answers
from sightline_trainer.report.gallery import data_uri
from sightline_trainer.report.history import History
from sightline_trainer.report.marking import mark_spans
from sightline_trainer.report.meanings import MEANINGS
from sightline_trainer.report.page import TITLES
from sightline_trainer.report.verdict import verdict

CURVES = {key: {"title": title, "meaning": MEANINGS[key]} for key, title in TITLES.items()}


def about(directory: Path, state: str, error: str) -> dict[str, Any]:
    """A run's numbers, verdict and lineage; only the verdict for a run that has not begun."""
    if not (directory / "recipe.yaml").is_file():
        return {"verdict": verdict(state, error, [], {}, {}), "rows": [], "policies": [], "curves": {}}
    history = History.read(directory)
    return {
        "verdict": verdict(state, error, history.rows, history.updates, history.counts),
        "rows": history.rows,
        "policies": lineage(answers.policies(history)),
        "curves": CURVES,
    }


def about_events(
    events: Sequence[Mapping[str, Any]], state: str, error: str, policies: Sequence[RunPolicy]
) -> dict[str, Any]:
    """The same for a run whose files are elsewhere, from its events (the last of an iteration counts) and policies."""
    rows: dict[int, Mapping[str, float]] = {}
    updates: dict[int, Mapping[str, float]] = {}
    counts: dict[int, dict[str, int]] = {}
    for event in events:
        stage, iteration, metrics = event["stage"], int(event["iteration"]), event["metrics"]
        if stage == "iteration" and metrics:
            rows[iteration] = metrics
        elif stage == "update" and "loss" in metrics and not event["total"]:
            updates[iteration] = metrics
        elif stage == "pair" and "pairs" in metrics:
            counts[iteration] = {key: int(value) for key, value in metrics.items()}
    measured = [rows[iteration] for iteration in sorted(rows)]
    said = verdict(state, error, measured, updates, counts)
    return {"verdict": said, "rows": measured, "policies": lineage(policies), "curves": CURVES}


def lineage(policies: Sequence[RunPolicy]) -> list[dict[str, Any]]:
    """A run's policies, as the page draws them."""
    return [
        {
            "version": each.version,
            "parent": each.parent_version,
            "kind": each.kind,
            "iteration": each.iteration,
            "digest": each.manifest_sha256,
        }
        for each in policies
    ]


def gallery(pictures: Sequence[RunPicture]) -> list[dict[str, Any]]:
    """Pictures with two texts each, with the wrong words marked."""
    return [
        {
            "id": each.prompt_id,
            "picture": data_uri(each.image),
            "kind": each.change,
            "before": _said(each.before),
            "after": _said(each.after),
        }
        for each in pictures
    ]


def compared(found: RunComparison) -> dict[str, Any]:
    """Two runs: where their recipes differ, how their last policies differ (paired over the same images), pictures."""
    return {
        "recipe": [{"key": each.key, "one": _value(each.one), "other": _value(each.other)} for each in found.recipe],
        "changes": [{**asdict(each), "title": TITLES.get(each.metric, each.metric)} for each in found.metrics],
        "why": found.unpaired,
        "verdict": _difference(found.metrics),
        "pictures": gallery(found.pictures),
    }


def _difference(metrics: Sequence[MetricChange]) -> str:
    """The clear differences of a comparison, in one sentence."""
    clear = [
        f"{TITLES.get(each.metric, each.metric).partition(':')[0].partition(',')[0]} "
        f"{'lower' if (each.change or 0.0) < 0 else 'higher'}, {each.one:.3f} to {each.other:.3f}"
        for each in metrics
        if each.clear and each.one is not None and each.other is not None
    ]
    if not clear:
        return "No clear difference: every change could be chance."
    return f"Clear changes in the second run: {'; '.join(clear)}. All other changes could be chance."


def _said(text: RunText) -> dict[str, Any]:
    spans = [(span.start, span.end) for span in text.wrong_spans]
    return {"html": str(mark_spans(text.text, spans)), "reward": text.reward, "wrong": text.wrong}


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
