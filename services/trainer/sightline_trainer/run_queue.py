"""RunQueue: executes runs one after another in a thread of the service; its whole state is on disk."""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from sightline.errors import AlreadyExists, Cancelled, InvalidInput, NotFound, PreconditionFailed, SightlineError
from sightline_chassis.settings import SettingsError
from sightline_chassis.yaml_text import MOST_BYTES

from sightline_trainer.allowed import Allowed
from sightline_trainer.connections import Connections
from sightline_trainer.events import Event
from sightline_trainer.execute import execute, leased
from sightline_trainer.preflight.begin import asked_for
from sightline_trainer.preflight.finding import refuse
from sightline_trainer.preflight.known_models import KnownModels
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.run_index import RunIndex, is_ours, state_of
from sightline_trainer.runs import RunDirectory
from sightline_trainer.summaries import readable_state

logger = logging.getLogger(__name__)

MOST_REQUEST_ID = 200
MOST_OVERRIDES = 1000
UNFINISHED = ("queued", "running")
RUN_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


class RunQueue:
    """Runs under `root`. `start` queues the unfinished runs of an earlier process of the service."""

    def __init__(
        self,
        root: Path,
        *,
        resume: bool = True,
        connections: Connections | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        """`allowed`: what recipes may name; by default nothing."""
        self.root = root
        self._index = RunIndex(root)
        self.allowed = allowed or Allowed()
        self.connections = connections or Connections()
        self.models = KnownModels()
        self.resume = resume
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._current = ""  # the current run
        self._stops: dict[str, bool] = {}  # run id -> whether at once
        self._again = False  # whether the current run should continue, though it may be stopping
        self._closing = False
        self._lock = threading.RLock()  # guards run.json of all runs, and the fields above
        self._thread = threading.Thread(target=self._work, name="runs", daemon=True)

    def start(self) -> None:
        """Queue unfinished runs, oldest first, and start. A run that another trainer works on is left alone; without
        `resume`, unfinished runs count as stopped."""
        self.root.mkdir(parents=True, exist_ok=True)
        readable = [(state, run) for run in self.list() if (state := state_of(run)) is not None]
        for state, run in sorted(readable, key=lambda found: float(found[0].get("queued", 0.0))):
            try:
                if state["state"] in UNFINISHED and not leased(run):
                    run.set_state("queued" if self.resume else "stopped")
                    if self.resume:
                        self._waiting.put(run.id)
            except OSError:  # others can be written
                logger.exception("run %s cannot be written and is not resumed", run.id)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread that executes runs is alive."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the current run and leave it unfinished, so that a restart resumes it. The wait is short, since the files
        on disk are complete at any moment."""
        self._closing = True
        self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def submit(
        self, request_id: str, recipe_file: Path | None, text: str, overrides: Sequence[str], run_id: str = ""
    ) -> RunDirectory:
        """Queue a run; the same request twice is one run.

        Raises:
            InvalidInput: no request id or one that is too long, a bad run id, a recipe that can't be read, has unknown
                keys, or names what is not allowed.
            PreconditionFailed: its model can't be used, or a program that it names is not here (`preflight.begin`).
            AlreadyExists: another request has a run of that id.
        """
        if not request_id:
            raise InvalidInput(
                "request_id is empty; send a unique one, so that a retry starts no second run", reason="BAD_REQUEST_ID"
            )
        if run_id and not RUN_ID.fullmatch(run_id):
            raise InvalidInput(
                f"run_id {run_id[:120]!r}: use 1 to 100 lower-case letters, digits, - and _, with a letter or a digit "
                "first",
                reason="RUN_ID",
            )
        if len(request_id) > MOST_REQUEST_ID:
            raise InvalidInput(
                f"request_id has over {MOST_REQUEST_ID} characters; a UUID is enough", reason="BAD_REQUEST_ID"
            )
        if (known := self._index.of_request(request_id)) is not None:
            return known
        recipe = self._recipe(recipe_file, text, overrides)  # not under the lock: it is untrusted
        self.allowed.check(recipe, self.connections)
        refuse(asked_for(recipe, self.models))
        with self._lock:
            if (known := self._index.of_request(request_id)) is not None:
                return known
            digest = hashlib.sha256(request_id.encode()).hexdigest()[:12]
            run = RunDirectory(self.root / (run_id or f"{recipe.name}-{digest}"))
            if (run.root / "run.json").exists():
                raise AlreadyExists(f"a run {run.id!r} already exists; choose another run_id", reason="RUN_EXISTS")
            run.open(recipe)
            self._enqueue(run, request_id=request_id)
        return run

    def _enqueue(self, run: RunDirectory, **facts: object) -> None:
        run.set_state("queued", queued=time.time(), **facts)
        self._waiting.put(run.id)

    def _recipe(self, file: Path | None, text: str, overrides: Sequence[str]) -> Recipe:
        if len(overrides) > MOST_OVERRIDES or len(text) + sum(map(len, overrides)) > MOST_BYTES:
            raise InvalidInput(
                f"the recipe is too large: at most {MOST_BYTES} bytes and {MOST_OVERRIDES} overrides are allowed",
                reason="RECIPE_INVALID",
            )
        named = ""
        try:
            if file is not None:
                return load_recipe(file, overrides, files_by=("file", "environment"), parts=self.allowed.parts)
            with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as sent:
                named = sent.name
                sent.write(text)
                sent.flush()
                # It is the caller's.
                return load_recipe(Path(named), overrides, environment=False, files_by=(), parts=self.allowed.parts)
        except SettingsError as error:
            told = str(error).replace(named, "the recipe") if named else str(error)  # callers do not know our file
            raise InvalidInput(told, reason="RECIPE_INVALID") from None

    def stop(self, run_id: str, *, now: bool) -> RunDirectory:
        """Ask a run to stop, after the current stage or at once. A run that has ended is unchanged.

        Raises:
            NotFound: there is none.
            PreconditionFailed: another process works on it, or its run.json cannot be read.
        """
        run = self.get(run_id)
        readable_state(run)
        with self._lock:
            if run_id == self._current:
                self._again = False
                self._stops[run_id] = now or self._stops.get(run_id, False)
                if run.state()["state"] == "queued":  # it has just ended and should continue, or is about to begin
                    run.set_state("stopped")
            elif run.state()["state"] in UNFINISHED:
                if leased(run):
                    raise PreconditionFailed(
                        f"another process works on run {run_id!r}: stop it at the trainer or terminal that runs it",
                        reason="RUN_LEASED",
                    )
                run.set_state("stopped")
        return run

    def go_on(self, run_id: str) -> RunDirectory:
        """Queue a stopped or failed run, or one whose process was killed; one that is being worked on continues anyway.

        Raises:
            NotFound: there is none.
            PreconditionFailed: all its iterations are done, it was started with another rule for reading pictures, its
                run.json cannot be read, or its recipe.yaml is missing.
            DataCorrupted: its recipe.yaml is damaged.
        """
        run = self.get(run_id)
        readable_state(run)
        with self._lock:
            state = run.state()["state"]
            if state == "succeeded":
                raise PreconditionFailed(
                    f"all iterations of run {run_id!r} are done; start another one with more of them",
                    reason="RUN_SUCCEEDED",
                )
            run.check(_recipe_of(run))
            if state not in UNFINISHED:  # it may still be the current one for a moment
                self._enqueue(run)
            elif run_id == self._current:
                self._again = True
                self._stops.pop(run_id, None)
            elif not leased(run):  # another trainer may have had it and been killed
                if state == "running":
                    self._enqueue(run)
                else:
                    self._waiting.put(run.id)  # if it waits here already, it is still done once
        return run

    def get(self, run_id: str) -> RunDirectory:
        """A run by its id, even if its files cannot be read.

        Raises:
            NotFound: there is none.
        """
        run = RunDirectory(self.root / run_id) if RUN_ID.fullmatch(run_id) else None
        if run is None or not is_ours(run):
            raise NotFound(f"no run {run_id[:100]!r}; ListRuns names them", reason="RUN_NOT_FOUND")
        return run

    def list(self) -> list[RunDirectory]:
        """All runs that were started through the service, newest first; those that cannot be read, last. It reads a
        file of each: do not call it from the event loop."""
        return self._index.list()

    def _work(self) -> None:
        while not self._closing:
            run_id = self._waiting.get()
            if run_id is None:
                return
            try:
                self._do(run_id)
            except Exception:  # of a directory that can no longer be read or written: other runs may be elsewhere
                logger.exception("run %s was given up", run_id)

    def _do(self, run_id: str) -> None:
        """Execute a run, unless it is no longer queued."""
        try:
            with self._lock:
                run = self.get(run_id)
                if run.state()["state"] != "queued":
                    return
                recipe = _recipe_of(run, self.allowed.parts)
                self.allowed.check(recipe, self.connections)  # the settings may have changed since it was started
                self._current = run_id
        except InvalidInput as error:
            logger.warning("run %s may not continue: %s", run_id, error)
            run.set_state("failed", error=error.message, reason=error.reason)
            return
        except Exception as error:  # its directory was deleted, or written by another version of the trainer
            logger.exception("run %s cannot be read", run_id)
            with suppress(Exception):
                self.get(run_id).set_state("failed", error=f"it cannot be read: {error}", reason="RUN_UNREADABLE")
            return
        try:
            execute(recipe, run, partial(self._check, run_id), self.connections, partial(self._halt, run_id))
        except Cancelled:
            if self._closing and run_id not in self._stops:
                run.set_state("queued")
        except Exception as error:
            logger.exception("run %s failed", run_id)
            if run.state().get("state") == "queued":  # it was refused before it began
                reason = error.reason if isinstance(error, SightlineError) else "UNEXPECTED"
                run.set_state("failed", error=f"{type(error).__name__}: {error}", reason=reason)
        finally:
            with self._lock:
                self._current, again, self._again = "", self._again, False
                self._stops.pop(run_id, None)
                if again and run.state().get("state") == "stopped":
                    self._enqueue(run)

    def _check(self, run_id: str, event: Event) -> None:
        self._halt(run_id)
        if run_id in self._stops and _ends_stage(event):
            raise Cancelled(f"run {run_id} was stopped", reason="RUN_STOPPED")

    def _halt(self, run_id: str) -> None:
        if self._closing or self._stops.get(run_id):
            raise Cancelled(f"run {run_id} was stopped", reason="RUN_STOPPED")


def _recipe_of(run: RunDirectory, parts: Collection[str] = ()) -> Recipe:
    """The recipe that the run was started with; see `RunDirectory.recipe`.

    Raises:
        PreconditionFailed: RUN_UNREADABLE: its file is missing.
    """
    recipe = run.recipe(parts)
    if recipe is None:
        raise PreconditionFailed(
            f"run {run.id!r} has no recipe.yaml: restore it from a copy, or start another run", reason="RUN_UNREADABLE"
        )
    return recipe


def _ends_stage(event: Event) -> bool:
    return event.stage in ("pair", "publish", "iteration") or (event.stage == "update" and bool(event.metrics))


def recipes_in(directory: Path) -> dict[str, Path]:
    """Recipe files by name."""
    return {path.stem: path for path in sorted(directory.glob("*.yaml")) if path.is_file()}
