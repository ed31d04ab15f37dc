"""Sources of runs: a directory on this machine, or a trainer service."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from sightline.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed
from sightline.runs import RunComparison, RunPicture
from sightline_trainer.events import EventReader
from sightline_trainer.execute import leased
from sightline_trainer.report import answers
from sightline_trainer.report.history import History
from sightline_trainer.runs import RunDirectory

from sightline_cli.console import told
from sightline_cli.run import PROCESS, recipe_file

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_START = "console.json"
_LOOK_SECONDS = 0.3
Row = dict[str, Any]


class Runs(Protocol):
    """All runs of one place."""

    place: str
    """For people: a directory, or a service's address."""
    files: bool
    """Whether the runs' files are on this machine: a report needs them."""

    def listed(self) -> list[Row]:
        """For each run, newest first: `id, state, recipe, iteration, iterations, created, updated, error`."""

    def start(self, name: str, recipe: str, overrides: list[str]) -> None:
        """Start a run. Raises SightlineError."""

    def stop(self, run: str) -> None:
        """Stop a run. Raises SightlineError."""

    def resume(self, run: str) -> None:
        """Resume a run. Raises SightlineError."""

    def row(self, run: str) -> Row:
        """One run's row. Raises SightlineError."""

    async def about(self, run: str) -> dict[str, Any]:
        """Its numbers, verdict, lineage and curves, as `told.about` returns them. Raises SightlineError."""

    def gallery(self, run: str, iteration: int) -> Sequence[RunPicture]:
        """Held-out pictures: the base model's texts against those of an iteration's policy. Raises SightlineError."""

    def compared(self, one: str, other: str) -> RunComparison:
        """Compare two runs. Raises SightlineError."""

    def news(self, run: str) -> AsyncIterator[Row | None]:
        """A run's events from its start until it ends; None if there was none for a moment."""


class RunsHere:
    """Runs under a directory; runs that are started here are separate `sightline run` processes.

    Args:
        root: the directory.
    """

    files = True

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.place = str(root)
        self._begun: dict[str, subprocess.Popen[bytes]] = {}
        self._trees: dict[str, tuple[int, Row]] = {}

    def directory(self, run: str) -> Path:
        """A run's directory. Raises NotFound."""
        path = self.root / run
        if not _NAME.fullmatch(run.lower()) or (not (path / "recipe.yaml").is_file() and not (path / _START).is_file()):
            raise NotFound(f"there is no run {run[:100]!r} in {self.root}", reason="RUN_NOT_FOUND")
        return path

    def listed(self) -> list[Row]:
        """See `Runs`."""
        rows = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if (path / "recipe.yaml").is_file() or (path / _START).is_file():
                rows.append(self.row(path.name))
        return sorted(rows, key=lambda row: -float(row["created"]))

    async def about(self, run: str) -> dict[str, Any]:
        """See `Runs`."""

        def read() -> dict[str, Any]:
            row = self.row(run)
            return {"run": row, **told.about(self.directory(run), str(row["state"]), str(row["error"]))}

        return await asyncio.to_thread(read)

    def row(self, run: str) -> Row:
        """See `Runs`."""
        directory = RunDirectory(self.directory(run))
        state = dict(directory.state())
        tree = self._tree(directory)
        rows = _quietly(directory.rows) or []
        begun, going = self._begun.get(run), self._going(run) is not None
        what = str(state.get("state", "queued"))
        error = str(state.get("error", ""))
        if what in ("queued", "running") and not going:
            if not leased(directory):  # its process was killed, or never started
                what = "stopped" if what == "running" else "failed" if begun is not None else what
                error = error or (self._last_words(run) if what == "failed" else "")
        elif what not in ("queued", "running") and going:
            what = "running"  # it continues, but has not recorded it yet
        return {
            "id": run,
            "state": what,
            "recipe": tree.get("name", ""),
            "iteration": int(rows[-1].get("iteration", 0)) if rows else 0,
            "iterations": int(tree.get("iterations", 0)),
            "created": float(state.get("created") or directory.root.stat().st_mtime),
            "updated": float(state.get("updated") or 0),
            "error": error,
        }

    def start(self, name: str, recipe: str, overrides: list[str]) -> None:
        """See `Runs`."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{name[:100]!r} is not a name for a run: use lower-case letters, digits, - and _",
                reason="BAD_RUN_NAME",
            )
        path = self.root / name
        if path.exists():
            raise AlreadyExists(f"run {name} already exists: give another name", reason="RUN_EXISTS")
        known = str(recipe_file(recipe).resolve())
        path.mkdir(parents=True)
        (path / _START).write_text(json.dumps({"recipe": known, "overrides": overrides}))
        self._spawn(name, known, overrides)

    def stop(self, run: str) -> None:
        """See `Runs`."""
        process = self.directory(run) / PROCESS
        if not process.is_file() or not leased(RunDirectory(self.root / run)):
            begun = self._going(run)
            if begun is None:
                raise PreconditionFailed(
                    f"run {run} was not started here by `sightline run`: stop it where it was started",
                    reason="RUN_NOT_RUNNING",
                )
            begun.send_signal(signal.SIGTERM)
            return
        os.kill(int(process.read_text(encoding="utf-8")), signal.SIGTERM)

    def resume(self, run: str) -> None:
        """See `Runs`."""
        path = self.directory(run)
        if leased(RunDirectory(path)) or self._going(run) is not None:
            raise PreconditionFailed(f"run {run} is still running: stop it first", reason="RUN_LEASED")
        if (path / _START).is_file():
            begun = json.loads((path / _START).read_text(encoding="utf-8"))
            self._spawn(run, begun["recipe"], begun["overrides"])
        else:
            own = (path / "services").is_dir()  # services that `sightline run` had started have ended
            addresses = ["sampling.address=null", "reward.address=null"] if own else []
            self._spawn(run, str(path / "recipe.yaml"), addresses)

    def gallery(self, run: str, iteration: int) -> Sequence[RunPicture]:
        """See `Runs`."""
        return answers.pictures(History.read(self.directory(run)), iteration)

    def compared(self, one: str, other: str) -> RunComparison:
        """See `Runs`."""
        return answers.compare(History.read(self.directory(one)), History.read(self.directory(other)))

    async def news(self, run: str) -> AsyncIterator[Row | None]:
        """See `Runs`."""
        path = self.directory(run)
        events = EventReader(path / "events.jsonl")
        steps: dict[str, int] = {}

        def read() -> tuple[bool, list[Row]]:
            ended = self.row(run)["state"] not in ("queued", "running")  # read before the events: misses none
            return ended, [*(asdict(event) for _, event in events.read()), *_steps(path / "trl", steps)]

        ended = False
        while not ended:
            ended, found = await asyncio.to_thread(read)
            for line in found:
                yield line
            if not ended:
                if not found:
                    yield None
                await asyncio.sleep(_LOOK_SECONDS)

    def _tree(self, directory: RunDirectory) -> Row:
        """The recipe's values, read again only when its file changed: the page asks for the list every two seconds."""
        file = directory.root / "recipe.yaml"
        try:
            changed = file.stat().st_mtime_ns
        except OSError:
            return {}
        known = self._trees.get(directory.root.name)
        if known is None or known[0] != changed:
            known = self._trees[directory.root.name] = changed, _quietly(directory.tree) or {}
        return known[1]

    def _going(self, run: str) -> subprocess.Popen[bytes] | None:
        """The process that was started here, while it runs."""
        begun = self._begun.get(run)
        return begun if begun is not None and begun.poll() is None else None

    def _spawn(self, run: str, recipe: str, overrides: list[str]) -> None:
        path = self.root / run
        command = [sys.executable, "-m", "sightline_cli", "run", recipe, "--run", str(path), "--json"]
        for each in overrides:
            command += ["--set", each]
        with (path / "console.log").open("ab") as log:
            self._begun[run] = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )

    def _last_words(self, run: str) -> str:
        try:
            lines = (self.root / run / "console.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        told = [line for line in lines if line.startswith("error:")]
        return (told or lines or [""])[-1].removeprefix("error: ")[:500]


def _steps(directory: Path, known: dict[str, int]) -> Iterator[Row]:
    """New lines of the updates' step logs."""
    for path in sorted(directory.glob("steps-*.jsonl")):
        start = known.get(path.name, 0)
        if path.stat().st_size < start:
            start = 0  # the update was restarted
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                start += len(line)
                numbers: Mapping[str, Any] = json.loads(line)
                yield {"stage": "step", "iteration": int(path.stem.partition("-")[2]), "metrics": dict(numbers)}
        known[path.name] = start


def _quietly(read: Any) -> Any:
    """The content of a run's file; empty if it is damaged, which the run's page reports."""
    try:
        return read()
    except Exception:
        return None
