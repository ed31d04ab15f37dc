"""Calibrate a scorer's model on a reference set, or make the scorer reload its models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from sightline.channel import open_channel
from sightline.errors import InvalidInput, NotFound, PreconditionFailed, SightlineError, typed_errors
from sightline.scorer import ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline_scorer.calibration import FILE_NAME, fit
from sightline_trainer.evaluation.lines import encodable, read_lines

from sightline_cli.credentials import given

_LEVELS = (25, 50, 75)


def calibrate(pairs: Path, scorer: str, name: str, out: Path | None, as_json: bool) -> None:
    """Score a reference set, fit the percentiles, and write them.

    Raises:
        InvalidInput: a line of `pairs` can't be read, or holds no pair.
        NotFound: the scorer has no such model.
        PreconditionFailed: it is an ensemble, its directory is not on this machine, or there are too few pairs.
        SightlineError: the scorer is unavailable or refuses.
    """
    places, lines = zip(*reference_lines(pairs), strict=True)
    cosines: list[float] = []
    left_out: list[str] = []
    with ScorerClient(scorer, **given().of_client()) as client:
        listed = {model.name: model for model in client.list_models().models}
        model = listed.get(name) or next(model for model in listed.values() if model.is_default)
        if name and model.name != name:
            raise NotFound(
                f"the scorer has no model {name!r}; it has {', '.join(sorted(listed))}", reason="MODEL_NOT_FOUND"
            )
        if model.model_kind == "ensemble" or model.members:
            raise PreconditionFailed(
                f"{model.name!r} is an ensemble: calibrate its members", reason="MODEL_IS_ENSEMBLE"
            )
        # Such a model's score is not a function of the cosine, or it has no cosine.
        marks = model.model_kind == "aesthetic" or "cosine" not in model.kinds
        target = out or _beside(model.architecture)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"scoring with {model.name}", total=len(lines))
            outcomes = client.score_many(lines, model=model.name, kind="reward" if marks else "cosine")
            for place, outcome in zip(places, outcomes, strict=True):
                progress.advance(task)
                if isinstance(outcome, InvalidInput):  # the fault of this line: the others are still measured
                    left_out.append(f"{place}: {outcome.message}")
                elif isinstance(outcome, SightlineError):
                    raise outcome
                else:
                    cosines.extend(outcome.value.tolist())
    if left_out:
        why = f"{len(left_out)} of {len(lines)} lines skipped; the first is {left_out[0]}"
        if not cosines:
            raise InvalidInput(why, reason="LINE")
        typer.echo(why, err=True)
    try:
        fitted = fit(cosines, model.weights_digest, model.preprocessing_digest)
    except ValueError as error:
        raise PreconditionFailed(str(error), reason="TOO_FEW_TEXTS") from None
    aside = target.with_name(target.name + ".part")
    aside.write_text(fitted.to_json())
    os.replace(aside, target)
    quartiles = [round(float(fitted.cosines[(abs(fitted.levels - level)).argmin()]), 4) for level in _LEVELS]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "file": str(target),
                    "model": model.name,
                    "pairs": fitted.pairs,
                    "quartiles": quartiles,
                    "left_out": len(left_out),
                }
            )
        )
    else:
        shown = ", ".join(f"{value:.4f}" for value in quartiles)
        typer.echo(f"{target}: {fitted.pairs} pairs of {model.name}; cosines at 25, 50 and 75 per cent: {shown}")


def reload(scorer: str, as_json: bool) -> None:
    """Make the scorer reload its models, and report which are new.

    Raises:
        PermissionDenied: its settings do not allow that.
        SightlineError: it is unavailable, or a model cannot be loaded; it continues with those that it has.
    """
    with open_channel(scorer, **given().arguments()) as channel, typed_errors():
        answer = scorer_pb2_grpc.ScorerServiceStub(channel).ReloadModels(pb.ReloadModelsRequest(), timeout=600)
    models: list[dict[str, Any]] = [
        {
            "name": model.name,
            "version": model.version,
            "weights_digest": model.weights_digest,
            "new": model.name in answer.changed,
        }
        for model in answer.models
    ]
    if as_json:
        typer.echo(json.dumps({"models": models, "removed": list(answer.removed)}, indent=2))
        return
    for model in models:
        what = "new" if model["new"] else "as before"
        typer.echo(f"{model['name']} version {model['version']} ({model['weights_digest'][:12]}): {what}")
    for name in answer.removed:
        typer.echo(f"{name}: gone")


def reference_lines(path: Path) -> Iterator[tuple[str, tuple[Path, list[str]]]]:
    """(place, image and texts) of each line."""
    found = 0
    for line in read_lines(path, ["image", "texts"]):
        texts = line.row["texts"]
        if not isinstance(texts, list) or not all(isinstance(text, str) and encodable(text) for text in texts):
            raise line.fault('texts must be a list of whole texts: ["a cat", ...]')
        found += 1
        yield f"{path}, {line.place}", (path.parent / line.text("image"), texts)
    if not found:
        raise InvalidInput(f"{path} has no line {{'image': path, 'texts': [...]}}", reason="LINE")


def _beside(architecture: str) -> Path:
    folder = Path(architecture.removeprefix("local-dir:"))
    if not folder.is_dir():
        raise PreconditionFailed(
            f"the model ({architecture}) has no directory on this machine: name the output file with --out",
            reason="NO_SUCH_PATH",
        )
    return folder / FILE_NAME
