"""Event: what a run tells while it works, for files, terminals and remote watchers alike."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Stage = Literal["start", "sample", "pair", "update", "publish", "evaluate", "iteration", "end"]


@dataclass(frozen=True)
class Event:
    """One thing that happened. ``iteration`` is 0 for the evaluation of the base model; ``done`` of ``total``
    pieces of the stage are finished."""

    stage: Stage
    iteration: int = 0
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    time: float = field(default_factory=time.time)


class Observer(Protocol):
    """Whoever wants to know."""

    def __call__(self, event: Event) -> None: ...


class EventLog:
    """Appends events to a JSON-lines file; progress within a stage is thinned to about two lines a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

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


def read_events(path: Path, start: int = 0) -> Iterator[tuple[int, Event]]:
    """The events of a log from number ``start`` on, each with its number; a half-written last line is left out."""
    if not path.exists():
        return
    with path.open() as file:
        for number, line in enumerate(file):
            if number >= start and line.endswith("\n"):
                yield number, Event(**json.loads(line))


class Fanout:
    """Hands each event to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def __call__(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)
