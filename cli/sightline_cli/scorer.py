"""``sightline scorer``: what is done to a running scorer: calibrate a model, change its models.

Exit codes: 0 done; 1 the service failed or is away; 2 an input can't be used (the message names file, line and fix).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    help="Calibrate the models of a running scorer, or have it change them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Target = Annotated[str, typer.Option("--scorer", metavar="HOST:PORT", help="Address of the scorer.")]
Token = Annotated[str | None, typer.Option(envvar="SIGHTLINE_TOKEN", help="Sent with every call.")]


@app.command()
def calibrate(
    pairs: Annotated[Path, typer.Argument(help='JSON lines {"image": path, "texts": [...]} that match each other.')],
    scorer: Target,
    model: Annotated[str, typer.Option(help="The model's name; empty for the default one.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default calibration.json in the model's directory.")
    ] = None,
    token: Token = None,
) -> None:
    """Fit the percentiles of a model on a reference set: what part of its pairs scores lower.

    Afterwards reload the models (`sightline scorer reload`, or SIGHUP to the service).
    """
    from sightline_chassis.errors import SightlineError
    from sightline_scorer import ScorerClient
    from sightline_scorer.calibration import FILE_NAME, fit

    cosines: list[float] = []
    try:
        with ScorerClient(scorer, token=token) as client:
            listed = {info.name: info for info in client.list_models().models}
            info = listed.get(model) or next(info for info in listed.values() if info.is_default)
            if model and info.name != model:
                _refuse(f"the scorer has no model {model!r}; it has {', '.join(sorted(listed))}")
            if not info.embedding_size:
                _refuse(f"{info.name!r} is an ensemble: calibrate its members")
            target = out or _beside(info.architecture, FILE_NAME)
            for outcome in client.score_many(_read(pairs), model=info.name):
                if isinstance(outcome, SightlineError):
                    raise outcome
                cosines.extend(outcome.cosine.tolist())
    except SightlineError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    try:
        fitted = fit(cosines, info.weights_digest, info.preprocessing_digest)
    except ValueError as error:
        _refuse(str(error))
    aside = target.with_name(target.name + ".part")
    aside.write_text(fitted.to_json())
    os.replace(aside, target)
    quartiles = ", ".join(f"{fitted.cosines[(abs(fitted.levels - level)).argmin()]:.4f}" for level in (25, 50, 75))
    typer.echo(f"{target}: {fitted.pairs} pairs of {info.name}; cosines at 25, 50 and 75 per cent: {quartiles}")


@app.command()
def reload(scorer: Target, token: Token = None) -> None:
    """Have the scorer read its settings and models again; it must allow that (reload.rpc=true)."""
    from sightline_chassis.channel import open_channel
    from sightline_chassis.errors import SightlineError, typed_errors
    from sightline_scorer.v1 import scorer_pb2 as pb
    from sightline_scorer.v1 import scorer_pb2_grpc

    channel = open_channel(scorer, token=token)
    try:
        with channel, typed_errors():
            stub = scorer_pb2_grpc.ScorerServiceStub(channel)
            answer = stub.ReloadModels(pb.ReloadModelsRequest(), timeout=600)
    except SightlineError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    for info in answer.models:
        what = "new" if info.name in answer.changed else "as before"
        typer.echo(f"{info.name} version {info.version} ({info.weights_digest[:12]}): {what}")
    for name in answer.removed:
        typer.echo(f"{name}: gone")


def _read(path: Path) -> Iterator[tuple[Path, list[str]]]:
    try:
        with path.open() as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    image, texts = row["image"], row["texts"]
                    if not isinstance(image, str) or not isinstance(texts, list):
                        raise TypeError("image must be a path and texts a list")
                except (ValueError, KeyError, TypeError) as error:
                    _refuse(f"{path}:{number} is not {{'image': path, 'texts': [...]}}: {error!r}")
                yield path.parent / image, [str(text) for text in texts]
    except OSError as error:
        _refuse(f"{path} cannot be read: {error.strerror}")


def _beside(architecture: str, name: str) -> Path:
    folder = Path(architecture.removeprefix("local-dir:"))
    if not folder.is_dir():
        _refuse(f"the model ({architecture}) has no directory on this machine: say where to write with --out")
    return folder / name


def _refuse(why: str) -> NoReturn:
    typer.secho(f"error: {why}", fg="red", err=True)
    raise typer.Exit(2)
