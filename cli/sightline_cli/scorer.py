"""`sightline scorer`: administer a running scorer: calibrate a model, reload its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline_cli.failures import guarded

app = typer.Typer(
    help="Calibrate or reload the models of a running scorer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Target = Annotated[str, typer.Option("--scorer", metavar="HOST:PORT", help="Address of the scorer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def calibrate(
    pairs: Annotated[Path, typer.Argument(help='JSON lines {"image": path, "texts": [...]} of matching pairs.')],
    scorer: Target,
    model: Annotated[str, typer.Option(help="The model's name; empty for the default one.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: calibration.json in the model's directory.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit a model's percentiles on a reference set: the share of its pairs that score lower.

    Afterwards reload the models (`sightline scorer reload`, or SIGHUP to the service).
    """

    def work() -> None:
        from sightline_cli.calibration import calibrate as fit

        fit(pairs, scorer, model, out, as_json)

    guarded(work, debug, "scorer")


@app.command()
def reload(scorer: Target, as_json: Json = False, debug: Debug = False) -> None:
    """Make the scorer reload its settings and models; it must allow that (reload.rpc=true)."""

    def work() -> None:
        from sightline_cli.calibration import reload as read_again

        read_again(scorer, as_json)

    guarded(work, debug, "scorer")
