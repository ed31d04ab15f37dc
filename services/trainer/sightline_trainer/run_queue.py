"""RunQueue: runs one after another in a thread of the service; all that it must remember is on disk."""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import yaml
from sightline_chassis.errors import AlreadyExists, Cancelled, InvalidInput, NotFound
from sightline_chassis.settings import SettingsError

from sightline_trainer.connections import Connections
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.runs import RunDirectory

log = logging.getLogger(__name__)

UNFINISHED = ("queued", "running")
STAGE_ENDS = ("pair", "publish", "iteration")


class RunQueue:
    """Runs under ``root``. Unfinished runs of an earlier life of the service are queued again by ``start``."""

    def __init__(self, root: Path, *, resume: bool = True, connections: Connections | None = None) -> None:
        self.root = root
        self.connections = connections
        self.resume = resume
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stops: dict[str, bool] = {}  # run id -> at once
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="runs", daemon=True)

    def start(self) -> None:
        """Queue what is unfinished, oldest first, and begin."""
        self.root.mkdir(parents=True, exist_ok=True)
        for run in reversed(self.list()):
            if self.resume and run.state()["state"] in UNFINISHED:
                run.set_state("queued")
                self._waiting.put(run.id)
        self._thread.start()

    def alive(self) -> bool:
        """Whether runs are worked on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the run under way at its next event, leaving it unfinished: a restart goes on with it. One that waits
        for a service is not waited for: what is on disk is whole at any moment."""
        self._closing = True
        self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def submit(
        self, request_id: str, recipe_file: Path | None, text: str, overrides: Sequence[str], run_id: str = ""
    ) -> RunDirectory:
        """Queue a run; the same request twice is one run.

        Raises:
            InvalidInput: no request id, a bad run id, or a recipe that can't be read or has unknown keys.
            AlreadyExists: another request has a run of that id.
        """
        if not request_id:
            raise InvalidInput("request_id is empty; send a unique one, so that a retry starts no second run")
        if not re.fullmatch(r"([a-z0-9][a-z0-9_-]{0,99})?", run_id):
            raise InvalidInput(f"run_id {run_id!r} may hold lower-case letters, digits, - and _ only", reason="RUN_ID")
        with self._lock:
            known = next((run for run in self.list() if run.state()["request_id"] == request_id), None)
            if known is not None:
                return known
            recipe = self._recipe(recipe_file, text, overrides)
            digest = hashlib.sha256(request_id.encode()).hexdigest()[:12]
            run = RunDirectory(self.root / (run_id or f"{recipe.name}-{digest}"))
            if run.state():
                raise AlreadyExists(f"a run {run.id!r} is there already; choose another run_id", reason="RUN_EXISTS")
            run.open(recipe)
            run.set_state("queued", request_id=request_id)
        self._waiting.put(run.id)
        return run

    def _recipe(self, file: Path | None, text: str, overrides: Sequence[str]) -> Recipe:
        try:
            if file is not None:
                return load_recipe(file, overrides)
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as sent:
                sent.write(text)
                sent.flush()
                return load_recipe(Path(sent.name), overrides)
        except SettingsError as error:
            raise InvalidInput(str(error), reason="RECIPE_INVALID") from None

    def stop(self, run_id: str, *, now: bool) -> RunDirectory:
        """Ask a run to stop, after the stage under way or at its next sign of progress."""
        run = self.get(run_id)
        state = run.state()["state"]
        if state == "queued":
            run.set_state("stopped")
        elif state == "running":
            self._stops[run_id] = now or self._stops.get(run_id, False)
        return run

    def get(self, run_id: str) -> RunDirectory:
        """A run by its id.

        Raises:
            NotFound: there is none.
        """
        run = next((run for run in self.list() if run.id == run_id), None)
        if run is None:
            raise NotFound(f"no run {run_id!r}; ListRuns names them", reason="RUN_NOT_FOUND")
        return run

    def list(self) -> list[RunDirectory]:
        """All runs that were started through the service, newest first."""
        found = [RunDirectory(path.parent) for path in self.root.glob("*/run.json")]
        runs = [run for run in found if "request_id" in run.state()]
        return sorted(runs, key=lambda run: (-float(run.state().get("created", 0.0)), run.id))

    def _work(self) -> None:
        while not self._closing:
            run_id = self._waiting.get()
            if run_id is None:
                return
            run = self.get(run_id)
            recipe = run.recipe()
            if recipe is None or run.state()["state"] != "queued":
                continue
            try:
                execute(recipe, run, lambda event, run_id=run_id: self._check(run_id, event), self.connections)
            except Cancelled:
                if self._closing:
                    run.set_state("queued")
            except Exception:
                log.exception("run %s failed", run_id)
            finally:
                self._stops.pop(run_id, None)

    def _check(self, run_id: str, event: Event) -> None:
        now = self._stops.get(run_id)
        if self._closing or now or (now is False and event.stage in STAGE_ENDS):
            raise Cancelled(f"run {run_id} was stopped", reason="RUN_STOPPED")


def recipes_in(directory: Path) -> dict[str, Path]:
    """Recipe files by name."""
    return {path.stem: path for path in sorted(directory.glob("*.yaml")) if isinstance(_yaml(path), dict)}


def _yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        return None
