"""`sightline policies`: list, verify and merge the policies that a run has published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sightline_cli.failures import guarded

app = typer.Typer(
    help="List, show, verify and merge the policies of a run.", no_args_is_help=True, pretty_exceptions_enable=False
)

Run = Annotated[Path, typer.Argument(help="A run directory, or a directory of policies.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("list")
def list_(
    run: Annotated[Path | None, typer.Argument(help="A run directory; default runs/demo.")] = None,
    sampler: Annotated[str | None, typer.Option(help="List the policies that this sampler has loaded instead.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the policies of a run, or of a sampler, oldest first."""

    def work() -> None:
        from sightline_cli.policy_files import show_list

        show_list(run, sampler, as_json)

    guarded(work, debug)


@app.command()
def show(
    run: Run,
    version: Annotated[int, typer.Argument(help="The policy's version.", min=1)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a policy: its manifest, digests, metrics and lineage."""

    def work() -> None:
        from sightline_cli.policy_files import show_one

        show_one(run, version, as_json)

    guarded(work, debug)


@app.command()
def verify(
    run: Run,
    version: Annotated[int | None, typer.Option(help="Only this version.", min=1)] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file against its manifest. Exit code 1 if one is damaged."""

    def work() -> None:
        from sightline_cli.policy_files import verify_all

        verify_all(run, version, as_json)

    guarded(work, debug)


@app.command()
def merge(
    run: Run,
    version: Annotated[int, typer.Argument(help="The policy's version.", min=1)],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The new directory.")],
    base: Annotated[Path | None, typer.Option(help="Directory of the base model; default: the run's.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge a policy's adapter into a whole checkpoint, for engines that serve nothing else (TGI)."""

    def write() -> None:
        from sightline_cli.merging import merge as merge_to

        manifest = merge_to(run, version, to, base)
        if as_json:
            facts = {"directory": str(to), "version": manifest.version, "files": len(manifest.files)}
            typer.echo(json.dumps(facts))
        else:
            typer.echo(f"{to}: policy v{manifest.version} as a whole checkpoint, {len(manifest.files)} files")
        if manifest.metrics.get("base_bits"):
            typer.echo(
                f"policy v{manifest.version} was trained on its base model in 4 bits, and is merged into the weights "
                "as they are stored: its outputs differ by the quantization error; measure it before you serve it",
                err=True,
            )

    guarded(write, debug, "sampler,trainer")
