"""Checkpoints that passed the checks, so that further runs with one do not load its processor again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from cachetools import LRUCache

from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.preflight.finding import Finding
from sightline_trainer.preflight.model import checkpoint

_REMEMBERED = 256

Files = tuple[tuple[str, int, int], ...]


class KnownModels:
    """Thread-safe. A directory whose files changed is checked again; a hub name stays known as long as this object
    exists; a checkpoint that failed is always checked again."""

    def __init__(self) -> None:
        self._good: LRUCache[tuple[ModelProcessor, Files], bool] = LRUCache(_REMEMBERED)
        self._lock = threading.Lock()

    def checkpoint(self, made: ModelProcessor) -> Iterator[Finding]:
        """As `preflight.model.checkpoint` returns it."""
        key = made, _files(made.model)
        with self._lock:
            if key in self._good:
                return
        found = list(checkpoint(made))
        if not found:
            with self._lock:
                self._good[key] = True
        yield from found


def _files(model: str) -> Files:
    """Name, size and time of a directory's files; empty for a hub name."""
    if not os.path.isdir(model):
        return ()
    with os.scandir(model) as entries:
        return tuple(sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in entries))
