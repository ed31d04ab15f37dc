"""`sightline runs`: the runs of a trainer service, from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline_cli.credentials import given
from sightline_cli.failures import guarded

if TYPE_CHECKING:
    from datetime import datetime

    from sightline.runs import Run, RunClient, RunEvent

app = typer.Typer(
    help="Start, watch, stop and resume the runs of a trainer service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Trainer = Annotated[str, typer.Option("--trainer", metavar="HOST:PORT", help="Address of the trainer.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("list")
def list_(trainer: Trainer, as_json: Json = False, debug: Debug = False) -> None:
    """List all runs, newest first."""

    def show(client: RunClient) -> None:
        rows = [_row(run) for run in client.list()]
        print(json.dumps(rows, indent=2)) if as_json else _table(rows)

    _with(trainer, debug, show)


@app.command()
def start(
    recipe: Annotated[str, typer.Argument(help="A local recipe file, or the name of a recipe of the trainer.")],
    trainer: Trainer,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as dpo.beta=0.2.")
    ] = None,
    run: Annotated[str, typer.Option(help="Id of the new run; default: made from the recipe's name.")] = "",
    request: Annotated[
        str | None, typer.Option(help="Request id; two requests with the same id start one run; default: a new id.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a run. It waits in the queue if the trainer is busy."""

    def begin(client: RunClient) -> None:
        from sightline.errors import InvalidInput

        file = Path(recipe)
        named: dict[str, Any] = {"recipe_name": recipe}
        if file.is_file():
            try:
                named = {"recipe_text": file.read_text(encoding="utf-8")}
            except UnicodeDecodeError:
                raise InvalidInput(
                    f"{file} is not YAML in UTF-8: save it in that encoding", reason="RECIPE_UNREADABLE"
                ) from None
            if not named["recipe_text"].strip():
                raise InvalidInput(f"{file} is empty: `sightline recipe copy` makes one to edit", reason="RECIPE_EMPTY")
        elif file.name != recipe or file.suffix in (".yaml", ".yml"):
            raise InvalidInput(
                f"there is no file {recipe}: name a recipe file of this machine, or a recipe of the trainer by its "
                "name alone, such as clip_dpo",
                reason="RECIPE_NOT_FOUND",
            )
        _show(client.start(**named, overrides=overrides or [], request_id=request, run_id=run), as_json)

    _with(trainer, debug, begin)


@app.command()
def watch(
    run: RunId,
    trainer: Trainer,
    from_event: Annotated[
        int, typer.Option("--from", min=0, help="With --json: number of the first event to print.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event.")] = False,
    debug: Debug = False,
) -> None:
    """Watch a run until it ends. Exit code 1 if it failed."""

    def follow(client: RunClient) -> None:
        from sightline.errors import InternalError
        from sightline_trainer.display import Display

        from sightline_cli.watch import event_of

        if as_json:
            for said in client.watch(run, from_event=from_event):
                print(json.dumps(_event(said)), flush=True)
        else:
            with Display(client.get(run).iterations) as display:
                for said in client.watch(run):
                    display(event_of(said))
        ended = client.get(run)
        if ended.error:
            raise InternalError(f"the run failed: {ended.error}", reason=ended.reason or "RUN_FAILED")
        if not as_json:
            _show(ended, as_json=False)

    _with(trainer, debug, follow)


@app.command()
def stop(
    run: RunId,
    trainer: Trainer,
    now: Annotated[bool, typer.Option("--now", help="Abort the current stage.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop a run after its current stage; `resume` continues it."""
    _with(trainer, debug, lambda client: _show(client.stop(run, now=now), as_json))


@app.command()
def resume(run: RunId, trainer: Trainer, as_json: Json = False, debug: Debug = False) -> None:
    """Resume a stopped or failed run from its last finished stage."""
    _with(trainer, debug, lambda client: _show(client.resume(run), as_json))


def _with(trainer: str, debug: bool, work: Callable[[RunClient], None]) -> None:
    def call() -> None:
        from sightline.runs import RunClient

        with RunClient(trainer, **given().of_client()) as client:
            work(client)

    guarded(call, debug, "trainer")


def _row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "state": run.state,
        "recipe": run.recipe,
        "iteration": run.iteration,
        "iterations": run.iterations,
        "policy_version": run.policy_version,
        "created": _stamp(run.create_time),
        "updated": _stamp(run.update_time),
        "reason": run.reason,
        "error": run.error,
    }


def _event(said: RunEvent) -> dict[str, Any]:
    return {**asdict(said), "time": _stamp(said.time)}


def _stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _show(run: Run, as_json: bool) -> None:
    row = _row(run)
    if as_json:
        print(json.dumps(row, indent=2))
    else:
        _table([row])


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from sightline_trainer.display import draw, narrow

    table = narrow("")
    for name in ("run", "state", "recipe", "iterations", "policy", "created"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row["id"], row["state"], row["recipe"], f"{row['iteration']}/{row['iterations']}",
            f"v{row['policy_version']}", row["created"][:19].replace("T", " "),
        )  # fmt: skip
    console = Console()
    draw(table, console)
    for row in rows:
        if row["error"]:
            console.print(f"{row['id']}: {escape(row['error'])}", soft_wrap=True, highlight=False)
