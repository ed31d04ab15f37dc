"""Events that a run reports while it works, to files, terminals and remote watchers."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

Stage = Literal["start", "sample", "pair", "update", "publish", "evaluate", "iteration", "end"]

LEFT_OUT = "left_out"
"""Key of an event's metrics: number of rows that the stage left out; its message names the first."""
MOST_LINE = 1 << 20
"""Maximum bytes of a log line; longer ones are not ours."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One thing that happened. `iteration` is 0 for the evaluation of the base model; `done` of `total`
    pieces of the stage are finished."""

    stage: Stage
    iteration: int = 0
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    time: float = field(default_factory=time.time)


class Observer(Protocol):
    """A receiver of events."""

    def __call__(self, event: Event) -> None: ...


class EventLog:
    """Appends events to a JSON-lines file; progress within a stage is thinned to about two lines a second. An
    unfinished last line from an earlier writer is removed, since it was never read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0
        _cut_torn_line(path)

    def __call__(self, event: Event) -> None:
        progress = 0 < event.done < event.total
        if progress and event.time - self._last < 0.5:
            return
        self._last = event.time
        line = json.dumps(asdict(event)) + "\n"
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        kept = end
        while kept > 0:
            start = max(0, kept - 4096)
            file.seek(start)
            newline = file.read(kept - start).rfind(b"\n")
            kept = start + newline + 1
            if newline >= 0:
                break
        if kept < end:
            file.truncate(kept)


class EventReader:
    """Reads a growing log, each event and each line once. A damaged line is reported as an event that says so, and
    reading continues."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path = path
        self._start = start
        self._number = self._place = 0
        self._last = Event(stage="start", time=0.0)

    def read(self) -> Iterator[tuple[int, Event]]:
        """The new events, from number `start` on, each with its number."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            while line := file.readline(MOST_LINE):
                end = self._place + len(line)
                while not line.endswith(b"\n") and (more := file.readline(MOST_LINE)):
                    line, end = more, end + len(more)
                if not line.endswith(b"\n"):
                    return
                number, whole = self._number, end - self._place == len(line)
                event = self._event(line if whole else b"", number)
                self._number, self._place, self._last = number + 1, end, event
                if number >= self._start:
                    yield number, event

    def _event(self, line: bytes, number: int) -> Event:
        try:
            return _checked(json.loads(line))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            why = f"line {number + 1} of {self._path.name} is damaged and left out"
            logger.warning("%s: %s (%s)", self._path.parent.name, why, str(error)[:200])
            return replace(self._last, done=0, total=0, metrics={}, message=why)


def _checked(row: Any) -> Event:
    """The event in a row. Raises TypeError or ValueError if it is not one."""
    event = Event(**row)
    numbers = (event.iteration, event.done, event.total, event.time)
    if event.stage not in get_args(Stage) or not isinstance(event.message, str):
        raise ValueError(f"no event: stage {str(event.stage)[:40]!r}")
    if not all(isinstance(one, int | float) for one in (*numbers, *event.metrics.values())):
        raise ValueError("no event: a number is missing")
    return event


def read_events(path: Path, start: int = 0) -> Iterator[tuple[int, Event]]:
    """The events of a log from number `start` on, each with its number; a half-written last line is left out."""
    yield from EventReader(path, start).read()


class Fanout:
    """Passes each event to several observers, one event at a time, since overlapping stages report from several
    threads."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            for observer in self.observers:
                observer(event)
