"""Stopwatch: seconds of an iteration, summed over all trainer processes that worked on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sightline_trainer.files import read_json, write_json

SAVE_SECONDS = 5.0


class Stopwatch:
    """Starts when it is created, from the time in its file; a kill loses a few seconds at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float((read_json(path) or {}).get("seconds", 0.0))
        self._since = self._saved = time.monotonic()
        self._lock = threading.Lock()  # stages overlap

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return round(self._before + time.monotonic() - self._since, 3)

    def tick(self) -> None:
        """Save, unless it was saved recently."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the seconds so far to disk."""
        with self._lock:
            self._saved = time.monotonic()
            write_json(self._path, {"seconds": self.seconds})
