"""`sightline triton`: NVIDIA's Triton server from its wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sightline_cli.failures import guarded

app = typer.Typer(
    help="Install NVIDIA's Triton server, which runs the scorer's models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Makes `install` a subcommand even though it is the only one."""


@app.command()
def install(
    home: Annotated[
        Path | None, typer.Option(help="Directory to unpack it into; default: inside this Python environment.")
    ] = None,
    wheel: Annotated[Path | None, typer.Option(help="The wheel's file, if there is no package index.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Fetch the tritonserver of the nvidia-pytriton wheel (55 MB) and check its SHA-256; every service finds it.

    Uses pip's or uv's own settings: index, proxy, certificates. If the wheel does not run, use `triton.mode=worker`.
    """

    def work() -> None:
        from sightline_scorer.triton.installer import SHA256, VERSION
        from sightline_scorer.triton.installer import install as fetch

        found, fetched = fetch(home, wheel)
        if as_json:
            typer.echo(json.dumps({"home": str(found.home), "version": VERSION, "sha256": SHA256, "fetched": fetched}))
        else:
            typer.echo(f"{found.home}: {'installed' if fetched else 'already there'}, and it runs with this Python")

    guarded(work, debug, "scorer")
