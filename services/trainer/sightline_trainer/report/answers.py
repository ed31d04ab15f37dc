"""Answers to the trainer's clients from a run's files: pictures, policies, two runs compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sightline.errors import SightlineError
from sightline.runs import MetricChange, RecipeDifference, RunComparison, RunPicture, RunPolicy, RunText, TextSpan

from sightline_trainer.evaluation.bootstrap import paired
from sightline_trainer.evaluation.ratios import Ratios
from sightline_trainer.files import read_json
from sightline_trainer.report.gallery import Change, Said, changes, side_by_side
from sightline_trainer.report.history import History

PICTURES = 24
"""Default number, if the caller sets none."""
MOST_PICTURES = 48
MOST_BYTES = 3 << 20
"""Maximum bytes of the images of one answer; a message holds 4 MiB."""
COMPARED = ("chair_s", "chair_i", "cover", "clip_score", "mean_tokens", "pope_f1")


def pictures(history: History, iteration: int = 0, limit: int = 0) -> list[RunPicture]:
    """Held-out pictures: the base model's texts against those of an iteration's policy (0: the last measured).

    Raises:
        SightlineError: the dataset can't be read.
    """
    shown, _ = changes(history, _bounded(limit), iteration or None)
    return _light(shown)


def policies(history: History) -> list[RunPolicy]:
    """The policies of a run, oldest first."""
    return [
        RunPolicy(
            version=each.manifest.version,
            parent_version=each.manifest.parent_version,
            kind=each.manifest.kind,
            iteration=each.manifest.iteration,
            manifest_sha256=each.digest,
        )
        for each in history.policies
    ]


def compare(one: History, other: History, limit: int = 0) -> RunComparison:
    """Two runs: where their recipes differ, and their last policies, paired over the same pictures.

    Raises:
        SightlineError: the dataset can't be read.
    """
    flat = [dict(_flat(each.recipe, f"{each.run.root}/")) for each in (one, other)]
    differ = sorted(key for key in {*flat[0], *flat[1]} if flat[0].get(key) != flat[1].get(key))
    told = RunComparison(
        recipe=tuple(RecipeDifference(key, flat[0].get(key), flat[1].get(key)) for key in differ),
        metrics=(),
        unpaired="",
        pictures=(),
    )
    known = [_by_image(each) for each in (one, other)]
    if not all(known):
        return replace(told, unpaired="one of the two has not been measured yet")
    try:
        found = paired(*(Ratios.from_json(each) for each in known))
    except SightlineError as error:  # other test images: not comparable
        return replace(told, unpaired=error.message)
    metrics = (
        MetricChange(name, each.one, each.other, each.change, each.low, each.high, each.clear)
        for name, each in found.items()
        if name in COMPARED
    )
    return replace(told, metrics=tuple(metrics), pictures=tuple(_light(side_by_side(one, other, _bounded(limit)))))


def _bounded(limit: int) -> int:
    return min(limit or PICTURES, MOST_PICTURES)


def _by_image(history: History) -> Any:
    """Each image's contribution to each metric of the last policy; None before the first evaluation."""
    if not history.rows:
        return None
    return read_json(history.run.iteration(int(history.rows[-1]["iteration"])) / "by_image.json")


def _light(shown: Iterable[Change]) -> list[RunPicture]:
    """If images exceed the bound, only their texts remain."""
    found, size = [], 0
    for each in shown:
        size += len(each.image)
        image = each.image if size <= MOST_BYTES else b""
        found.append(RunPicture(each.prompt.id, image, _text(each.before), _text(each.after), each.kind))
    return found


def _text(said: Said) -> RunText:
    spans = tuple(TextSpan(start, end) for start, end in said.spans)
    return RunText(said.text, said.reward, said.tokens, spans, tuple(said.wrong), tuple(said.missed))


def _flat(tree: Any, inside: str, path: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys with their values as JSON; paths inside the run as `run:...`, which are equal for two runs."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, inside, f"{path}.{key}")
        return
    if isinstance(tree, str) and tree.startswith(inside):
        tree = f"run:{tree.removeprefix(inside)}"
    yield path.removeprefix("."), json.dumps(tree)
