"""Scorer models: calibrate one on a reference set, have a scorer read all of them again."""

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

from sightline_cli.credentials import given

_LEVELS = (25, 50, 75)


def calibrate(pairs: Path, scorer: str, name: str, out: Path | None, as_json: bool) -> None:
    """Score a reference set, fit the percentiles, and write them.

    Raises:
        InvalidInput: a line of `pairs` can't be read, or holds no pair.
        NotFound: the scorer has no such model.
        PreconditionFailed: it is an ensemble, or its directory is elsewhere; too few pairs for percentiles.
        SightlineError: the scorer is away, or refuses.
    """
    lines = list(_read(pairs))
    if not lines:
        raise InvalidInput(f"{pairs} holds no pairs", reason="FILE")
    cosines: list[float] = []
    with ScorerClient(scorer, **given().of_client()) as client:
        listed = {model.name: model for model in client.list_models().models}
        model = listed.get(name) or next(model for model in listed.values() if model.is_default)
        if name and model.name != name:
            raise NotFound(
                f"the scorer has no model {name!r}; it has {', '.join(sorted(listed))}", reason="MODEL_NOT_FOUND"
            )
        if not model.embedding_size:
            raise PreconditionFailed(
                f"{model.name!r} is an ensemble: calibrate its members", reason="MODEL_IS_ENSEMBLE"
            )
        target = out or _beside(model.architecture)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"scoring with {model.name}", total=len(lines))
            for outcome in client.score_many(lines, model=model.name):
                if isinstance(outcome, SightlineError):
                    raise outcome
                cosines.extend(outcome.cosine.tolist())
                progress.advance(task)
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
            json.dumps({"file": str(target), "model": model.name, "pairs": fitted.pairs, "quartiles": quartiles})
        )
    else:
        shown = ", ".join(f"{value:.4f}" for value in quartiles)
        typer.echo(f"{target}: {fitted.pairs} pairs of {model.name}; cosines at 25, 50 and 75 per cent: {shown}")


def reload(scorer: str, as_json: bool) -> None:
    """Have the scorer read its models again, and say which are new.

    Raises:
        PermissionDenied: it does not allow that.
        SightlineError: it is away, or a model can't be had; it goes on with those that it has.
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


def _read(path: Path) -> Iterator[tuple[Path, list[str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", reason="FILE") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is no text in UTF-8; name a file of JSON lines", reason="FILE") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, texts = row["image"], row["texts"]
            if not isinstance(image, str) or not isinstance(texts, list):
                raise TypeError("image must be a path and texts a list")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{path}:{number} is not {{'image': path, 'texts': [...]}}: {error!r}", reason="LINE"
            ) from None
        yield path.parent / image, [str(text) for text in texts]


def _beside(architecture: str) -> Path:
    folder = Path(architecture.removeprefix("local-dir:"))
    if not folder.is_dir():
        raise PreconditionFailed(
            f"the model ({architecture}) has no directory on this machine: say where to write with --out",
            reason="NO_SUCH_PATH",
        )
    return folder / FILE_NAME
