"""Executes one run from its recipe to its end: writes its state, holds its lease and logs its events."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import IO

from sightline.errors import Cancelled, PreconditionFailed, SightlineError

from sightline_trainer.connections import Connections
from sightline_trainer.disk import Reserve, disk_full, out_of_space
from sightline_trainer.events import Event, EventLog, Fanout, Observer
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory
from sightline_trainer.tracking import Tracking

logger = logging.getLogger(__name__)

LEASE_TRIES = 10


def not_asked_to_stop() -> None:
    """Does nothing: the default that never stops."""


@contextmanager
def lease(run: RunDirectory) -> Iterator[None]:
    """Hold the run's lease, so that two trainers never work on one directory. The kernel releases it when the holder
    dies.

    Raises:
        PreconditionFailed: another process holds it.
    """
    with _lease_file(run) as file:
        for left in reversed(range(LEASE_TRIES)):
            if _locked(file, fcntl.LOCK_EX):
                break
            if not left:
                raise PreconditionFailed(
                    f"another trainer works on {run.root}; wait for it or name another run directory",
                    reason="RUN_LEASED",
                )
            time.sleep(0.05)  # the other process may only have checked
        yield


def leased(run: RunDirectory) -> bool:
    """Whether a trainer works on the run now. Checking does not block other checks."""
    with _lease_file(run) as file:
        return not _locked(file, fcntl.LOCK_SH)


def killed(run: RunDirectory) -> bool:
    """Whether the run counts as running although no process on this machine works on it. For readers: it writes
    nothing, and a lease that cannot be read counts as held."""
    if run.state().get("state", "running") != "running":
        return False
    try:
        with (run.root / ".lease").open() as file:
            return _locked(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _lease_file(run: RunDirectory) -> IO[str]:
    run.root.mkdir(parents=True, exist_ok=True)
    return (run.root / ".lease").open("a+")


def _locked(file: IO[str], how: int) -> bool:
    """Lock it until it is closed; False if another process has it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers depend on."""
    return {name: version(name) for name in ("sightline", "torch", "transformers", "trl", "peft")}


def execute(
    recipe: Recipe,
    run: RunDirectory,
    observer: Observer,
    connections: Connections | None = None,
    halt: Callable[[], None] = not_asked_to_stop,
) -> list[dict[str, float]]:
    """Run the loop to its end, or resume it where it stopped.

    Args:
        connections: the addresses that the recipe leaves open, and credentials for them.
        halt: called several times a second while the loop waits for services; raises Cancelled if the run should stop.

    Returns:
        The content of `metrics.json`. The run becomes `succeeded`, `stopped` (interrupted, terminated, or
        `observer` or `halt` raised Cancelled) or `failed`, with the error and its reason in `run.json`.

    Raises:
        DiskFull: the disk was full.
        SightlineError: another reason why it did not succeed.
    """
    reserve = Reserve(run.root)
    with lease(run):
        run.check(recipe)
        try:
            redone = run.open(recipe)
            reserve.keep()
            run.set_state("running", versions=versions())
            from sightline_trainer.loop import Loop

            known = connections or Connections()
            reported = Tracking(recipe.dpo.report_to, run.root / "tracking", run.id)
            with reported:
                observers = Fanout(EventLog(run.events), observer, reported)
                if redone:
                    logger.warning("run %s: %s", run.id, redone)
                    observers(Event(stage="start", message=redone))
                table = Loop(known.complete(recipe), run, observers, known, halt).run()
        except (KeyboardInterrupt, SystemExit, Cancelled):
            run.set_state("stopped")
            raise
        except Exception as error:
            if not disk_full(error):
                _failed(run, error)
                raise
            reserve.give_up()
            full = out_of_space(run.root, error)
            _failed(run, full)
            raise full from error
        else:
            run.set_state("succeeded")
            return table
        finally:
            reserve.give_up()


def _failed(run: RunDirectory, error: Exception) -> None:
    reason = error.reason if isinstance(error, SightlineError) else "UNEXPECTED"
    try:
        run.set_state("failed", error=f"{type(error).__name__}: {error}", reason=reason)
    except OSError:
        logger.exception("the state of run %s cannot be written", run.id)
