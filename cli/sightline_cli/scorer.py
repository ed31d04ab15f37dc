"""`sightline scorer`: what is done to a running scorer: calibrate a model, change its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline_cli.failures import guarded

app = typer.Typer(
    help="Calibrate the models of a running scorer, or have it change them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Target = Annotated[str, typer.Option("--scorer", metavar="HOST:PORT", help="Address of the scorer.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def calibrate(
    pairs: Annotated[Path, typer.Argument(help='JSON lines {"image": path, "texts": [...]} that match each other.')],
    scorer: Target,
    model: Annotated[str, typer.Option(help="The model's name; empty for the default one.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default calibration.json in the model's directory.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit the percentiles of a model on a reference set: what part of its pairs scores lower.

    Afterwards reload the models (`sightline scorer reload`, or SIGHUP to the service).
    """

    def work() -> None:
        from sightline_cli.calibration import calibrate as fit

        fit(pairs, scorer, model, out, as_json)

    guarded(work, debug, "scorer")


@app.command()
def reload(scorer: Target, as_json: Json = False, debug: Debug = False) -> None:
    """Have the scorer read its settings and models again; it must allow that (reload.rpc=true)."""

    def work() -> None:
        from sightline_cli.calibration import reload as read_again

        read_again(scorer, as_json)

    guarded(work, debug, "scorer")
