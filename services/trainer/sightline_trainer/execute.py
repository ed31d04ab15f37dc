"""Executes one run from its recipe to its end: writes its state, holds its lease and logs its events."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from sightline.errors import Cancelled, PreconditionFailed, SightlineError
from sightline_chassis.file_lock import locked
from sightline_chassis.full_disk import disk_full

from sightline_trainer.connections import Connections
from sightline_trainer.disk import Reserve, out_of_space
from sightline_trainer.events import Event, EventLog, Fanout, Observer
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory, State
from sightline_trainer.tracking import Tracking

logger = logging.getLogger(__name__)

LEASE_TRIES = 10


def not_asked_to_stop() -> None:
    """Does nothing: the default that never stops."""


class RunLease:
    """A held lease on a run's directory."""

    def __init__(self, run: RunDirectory, file: IO[bytes]) -> None:
        self._run, self._file = run, file

    def gone(self) -> bool:
        """Whether the directory was moved, removed or replaced since: what is written there now belongs to no run, or
        to another one."""
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), _place(self._run).stat())
        except FileNotFoundError:
            return True

    def check(self) -> None:
        """Raise PreconditionFailed (RUN_REMOVED) if the directory is gone."""
        if self.gone():
            raise PreconditionFailed(
                f"{self._run.root} was moved, removed or replaced while its run worked: continue it where it is now, "
                "restore it from a copy, or start a new run",
                reason="RUN_REMOVED",
            )


@contextmanager
def lease(run: RunDirectory) -> Iterator[RunLease]:
    """Hold the run's lease, so that two trainers never work on one directory. The kernel releases it when the holder
    dies.

    Raises:
        PreconditionFailed: another process holds it.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with _place(run).open("ab+") as file:
        for left in reversed(range(LEASE_TRIES)):
            if locked(file):
                break
            if not left:
                raise _taken(run)
            time.sleep(0.05)  # the other process may only have checked
        yield RunLease(run, file)


def leased(run: RunDirectory) -> bool:
    """Whether a trainer works on the run now. Checking writes nothing and does not block other checks."""
    try:
        with _place(run).open("rb") as file:
            return not locked(file, shared=True)
    except FileNotFoundError:
        return False


def check_free(run: RunDirectory) -> None:
    """Raise PreconditionFailed (RUN_LEASED) if another process works on the run."""
    if leased(run):
        raise _taken(run)


def killed(run: RunDirectory) -> bool:
    """Whether the run counts as running although no process on this machine works on it. For readers: a lease that
    cannot be read counts as held."""
    if run.state().get("state", "running") != "running":
        return False
    try:
        return not leased(run)
    except OSError:
        return False


def _place(run: RunDirectory) -> Path:
    return run.root / ".lease"


def _taken(run: RunDirectory) -> PreconditionFailed:
    return PreconditionFailed(
        f"another trainer works on {run.root}; wait for it or name another run directory", reason="RUN_LEASED"
    )


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
        PreconditionFailed: RUN_REMOVED: its directory was moved, removed or replaced meanwhile.
        SightlineError: another reason why it did not succeed.
    """
    reserve = Reserve(run.root)
    with lease(run) as held:
        run.check(recipe)
        try:
            redone = run.open(recipe)
            reserve.keep()
            run.set_state("running", versions=versions())
            from sightline_trainer.loop import Loop

            known = connections or Connections()
            reported = Tracking(recipe.dpo.report_to, run.root / "tracking", run.id)
            with reported:
                observers = Fanout(lambda _: held.check(), EventLog(run.events), observer, reported)
                if redone:
                    logger.warning("run %s: %s", run.id, redone)
                    observers(Event(stage="start", message=redone))

                def halted() -> None:
                    held.check()
                    halt()

                table = Loop(known.complete(recipe), run, observers, known, halted).run()
            run.set_state("succeeded")
            return table
        except (KeyboardInterrupt, SystemExit, Cancelled):
            _ended(run, held, "stopped")
            raise
        except Exception as error:
            held.check()
            if not disk_full(error):
                _failed(run, held, error)
                raise
            reserve.give_up()
            full = out_of_space(run.root, error)
            _failed(run, held, full)
            raise full from error
        finally:
            with suppress(OSError):
                reserve.give_up()


def _failed(run: RunDirectory, held: RunLease, error: Exception) -> None:
    reason = error.reason if isinstance(error, SightlineError) else "UNEXPECTED"
    _ended(run, held, "failed", error=f"{type(error).__name__}: {error}", reason=reason)


def _ended(run: RunDirectory, held: RunLease, state: State, **facts: object) -> None:
    """Record how the run ended, if its directory can be written: how it ended says more than that it cannot."""
    try:
        if not held.gone():
            run.set_state(state, **facts)
    except OSError:
        logger.exception("the state of run %s cannot be written", run.id)
