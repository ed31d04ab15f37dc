"""What the console tells of runs whose files are here: numbers, verdict, galleries, lineage, and two runs compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline_trainer.evaluation.bootstrap import paired
from sightline_trainer.evaluation.ratios import Ratios
from sightline_trainer.files import read_json
from sightline_trainer.report.gallery import Change, changes, side_by_side
from sightline_trainer.report.history import History
from sightline_trainer.report.meanings import MEANINGS
from sightline_trainer.report.page import TITLES
from sightline_trainer.report.verdict import verdict

PICTURES = 24
CURVES = {key: {"title": title, "meaning": MEANINGS[key]} for key, title in TITLES.items()}
COMPARED = ("chair_s", "chair_i", "cover", "clip_score", "mean_tokens", "pope_f1")


def about(directory: Path, state: str, error: str) -> dict[str, Any]:
    """A run's numbers, its verdict and its lineage; of one that has not begun, the verdict alone."""
    if not (directory / "recipe.yaml").is_file():
        return {"verdict": verdict(state, error, [], {}, {}), "rows": [], "policies": [], "curves": {}}
    history = History.read(directory)
    return {
        "verdict": verdict(state, error, history.rows, history.updates, history.counts),
        "rows": history.rows,
        "policies": [
            {
                "version": each.manifest.version,
                "parent": each.manifest.parent_version,
                "kind": each.manifest.kind,
                "iteration": each.manifest.iteration,
                "digest": each.digest,
            }
            for each in history.policies
        ],
        "curves": CURVES,
    }


def about_events(events: Sequence[Mapping[str, Any]], state: str, error: str) -> dict[str, Any]:
    """The same of a run whose files are elsewhere, from its events: the last of an iteration counts."""
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
    return {"verdict": said, "rows": measured, "policies": [], "curves": CURVES}


def gallery(directory: Path, iteration: int) -> list[dict[str, Any]]:
    """Held-out pictures: the base model's captions against those of an iteration's policy."""
    shown, _ = changes(History.read(directory), PICTURES, iteration)
    return [_change(each) for each in shown]


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Two runs: where their recipes differ, how their last policies differ (paired over the same images), pictures."""
    histories = [History.read(path) for path in (one, other)]
    flat = [_flat(each.recipe, each.run.root) for each in histories]
    differ = sorted(key for key in {*flat[0], *flat[1]} if flat[0].get(key) != flat[1].get(key))
    told: dict[str, Any] = {
        "recipe": [{"key": key, "one": flat[0].get(key), "other": flat[1].get(key)} for key in differ],
        "changes": [],
        "why": "",
        "pictures": [],
    }
    files = [
        each.run.iteration(int(each.rows[-1]["iteration"])) / "by_image.json" if each.rows else None
        for each in histories
    ]
    known = [read_json(file) if file is not None else None for file in files]
    if not all(known):
        told["why"] = "one of the two has not been measured yet"
        return told
    try:
        found = paired(*(Ratios.from_json(each or {}) for each in known))
    except Exception as error:  # other test images: nothing to pair
        told["why"] = str(error)
        return told
    told["changes"] = [
        {
            "metric": name,
            "title": TITLES.get(name, name),
            "one": each.one,
            "other": each.other,
            "change": each.change,
            "low": each.low,
            "high": each.high,
            "clear": each.clear,
        }
        for name, each in found.items()
        if name in COMPARED
    ]
    told["pictures"] = [_change(each) for each in side_by_side(histories[0], histories[1], PICTURES)]
    return told


def _change(each: Change) -> dict[str, Any]:
    return {
        "id": each.prompt.id,
        "picture": each.picture,
        "kind": each.kind,
        "before": {"html": str(each.before.html), "reward": each.before.reward, "wrong": each.before.wrong},
        "after": {"html": str(each.after.html), "reward": each.after.reward, "wrong": each.after.wrong},
    }


def _flat(tree: Any, root: Path, path: str = "") -> dict[str, Any]:
    """Dotted key -> value; paths inside the run as `run:...`, which two runs have in common."""
    if isinstance(tree, dict) and tree:
        return {key: value for name, each in tree.items() for key, value in _flat(each, root, f"{path}.{name}").items()}
    inside = isinstance(tree, str) and tree.startswith(f"{root}/")
    return {path.removeprefix("."): f"run:{tree.removeprefix(f'{root}/')}" if inside else tree}
