"""Execute: one run from its recipe to its end, with its state on disk, its lease held and its events logged."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from sightline_chassis.errors import Cancelled, PreconditionFailed

from sightline_trainer.connections import Connections
from sightline_trainer.events import EventLog, Fanout, Observer
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory
from sightline_trainer.tracking import Tracking


@contextmanager
def lease(run: RunDirectory) -> Iterator[None]:
    """Hold the run: two trainers never work on one directory. The kernel gives it up when the holder dies.

    Raises:
        PreconditionFailed: somebody else holds it.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with (run.root / ".lease").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreconditionFailed(
                f"another trainer works on {run.root}; wait for it or name another run directory",
                reason="RUN_LEASED",
            ) from None
        yield


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {name: version(name) for name in ("sightline", "torch", "transformers", "trl", "peft")}


def execute(
    recipe: Recipe, run: RunDirectory, observer: Observer, connections: Connections | None = None
) -> list[dict[str, float]]:
    """Run the loop to its end, or on from where it stopped.

    ``connections`` gives the addresses that the recipe leaves open, and what is shown there. The run becomes
    ``succeeded``, ``stopped`` (interrupted, terminated, or an observer raised Cancelled) or ``failed``.

    Raises:
        SightlineError: why it did not succeed.
    """
    with lease(run):
        run.open(recipe)
        run.set_state("running", versions=versions())
        try:
            from sightline_trainer.loop import Loop

            known = connections or Connections()
            reported = Tracking(recipe.dpo.report_to, run.root / "tracking", run.id)
            with reported:
                observers = Fanout(EventLog(run.events), observer, reported)
                table = Loop(known.complete(recipe), run, observers, known).run()
        except (KeyboardInterrupt, SystemExit, Cancelled):
            run.set_state("stopped")
            raise
        except Exception as error:
            run.set_state("failed", error=f"{type(error).__name__}: {error}")
            raise
        run.set_state("succeeded")
        return table
