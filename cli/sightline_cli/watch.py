"""`sightline watch`: a run in the terminal."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from sightline.errors import InternalError, NotFound
from sightline_trainer.events import Event, EventReader, Stage
from sightline_trainer.execute import killed
from sightline_trainer.runs import RunDirectory

from sightline_cli.credentials import given
from sightline_cli.showing import showing

if TYPE_CHECKING:
    from sightline.runs import RunEvent

ENDED = ("succeeded", "failed", "stopped")


def watch(directory: Path, as_json: bool = False) -> None:
    """Show a run on this machine until it ends.

    Raises:
        NotFound: there is no run.
        InternalError: the run failed, or its process was killed; the message is the run's, or says how to resume.
    """
    run = RunDirectory(directory)
    recipe = run.recipe() if (directory / "recipe.yaml").exists() else None
    if recipe is None:
        raise NotFound(f"there is no run at {directory}: `ls runs` lists the runs here", reason="RUN_NOT_FOUND")
    with showing(recipe.iterations, as_json) as tell:
        for event in follow(run):
            tell(event)
    state = run.state()
    if state.get("error"):
        raise InternalError(f"the run {state['state']}: {state['error']}", reason="RUN_FAILED")
    Console(stderr=as_json).print(f"{run.id}: {state.get('state')}", markup=False)


def watch_remote(trainer: str, run_id: str, as_json: bool = False) -> None:
    """Show a run of a trainer service until it ends.

    Raises:
        SightlineError: the trainer does not know the run or is unavailable; InternalError if the run failed.
    """
    from sightline.runs import RunClient

    with RunClient(trainer, **given().of_client()) as client:
        with showing(client.get(run_id).iterations, as_json) as tell:
            for said in client.watch(run_id):
                tell(event_of(said))
        run = client.get(run_id)
    if run.error:
        raise InternalError(f"the run failed: {run.error}", reason="RUN_FAILED")


def follow(run: RunDirectory, *, poll: float = 0.3, patience: float = 15.0) -> Iterator[Event]:
    """The events of a run as they happen, from the first until the run has ended.

    Args:
        poll: seconds between two looks.
        patience: seconds for which a run may count as running without a process that works on it: a trainer that was
            killed may start again.

    Raises:
        InternalError: RUN_KILLED: it was longer.
    """
    events = EventReader(run.events)
    alive = time.monotonic()
    while True:
        ended = run.state().get("state") in ENDED  # read before the events: misses none
        gone = not ended and killed(run)
        for _, event in events.read():
            yield event
        if ended:
            return
        if not gone:
            alive = time.monotonic()
        elif time.monotonic() - alive >= patience:
            root = shlex.quote(str(run.root))
            raise InternalError(
                f"no process on this machine works on the run any more: it was killed, or works elsewhere. "
                f"`sightline run {root}/recipe.yaml --run {root}` resumes it; so does the trainer service that "
                f"started it",
                reason="RUN_KILLED",
            )
        time.sleep(poll)


def event_of(said: RunEvent) -> Event:
    """An event from the trainer's client, in the form of a run's directory."""
    return Event(
        stage=cast(Stage, said.stage),
        iteration=said.iteration,
        done=said.done,
        total=said.total,
        metrics=dict(said.metrics),
        message=said.message,
    )
