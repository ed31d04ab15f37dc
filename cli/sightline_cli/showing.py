"""Show a run's events as bars and a table for people, or as JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from sightline_trainer.events import Event, Observer


@contextmanager
def showing(iterations: int, as_json: bool, rows: Sequence[Mapping[str, float]] = ()) -> Iterator[Observer]:
    """A receiver of events. With JSON, each event is one line on stdout, and nothing else is printed.

    Args:
        rows: the metrics of policies that were measured before.
    """
    if as_json:
        yield _line
        return
    from sightline_trainer.display import Display

    with Display(iterations, rows=rows) as display:
        yield display


def _line(event: Event) -> None:
    print(json.dumps(asdict(event)), flush=True)
