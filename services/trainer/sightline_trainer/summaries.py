"""Summaries of runs, read from their files once per version of the files, outside the event loop.

A run whose files cannot be read (written by another release, or lost) gives a row that says so.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from sightline.errors import PreconditionFailed, SightlineError
from sightline.runs import RunState

from sightline_trainer.runs import RunDirectory

STATES = ("queued", "running", "succeeded", "failed", "stopped")
MOST = 10_000
Signature = tuple[int, int, int]


@dataclass(frozen=True)
class RunSummary:
    """A run as callers see it. `error` and `reason` say why it failed, or why its files cannot be read."""

    id: str
    state: RunState = "failed"
    recipe: str = ""
    iterations: int = 0
    iteration: int = 0
    policy_version: int = 0
    error: str = ""
    reason: str = ""
    created: float = 0.0
    updated: float = 0.0


class Summaries:
    """Summaries of runs; the parts from recipes are cached. Thread-safe, but blocking: do not use it in the event
    loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recipes: LRUCache[Path, tuple[Signature, tuple[str, int] | SightlineError]] = LRUCache(MOST)

    def of(self, run: RunDirectory) -> RunSummary:
        """The run by its current files; never raises because of their content."""
        try:
            state = readable_state(run)
        except SightlineError as error:
            return RunSummary(run.id, error=error.message, reason=error.reason)
        failure, reason = str(state.get("error", "")), str(state.get("reason", ""))
        name, iterations, iteration, version = "", 0, 0, 0
        try:
            name, iterations = self._recipe(run)
            rows = run.rows()
            iteration, version = max(0, len(rows) - 1), int(rows[-1]["policy_version"]) if rows else 0
        except SightlineError as unreadable:
            failure, reason = _beside(f"its files cannot be read: {unreadable.message}", failure), "RUN_UNREADABLE"
        except (LookupError, TypeError, ValueError, OSError, RecursionError) as unreadable:
            failure, reason = _beside(f"its metrics.json cannot be read: {unreadable}", failure), "RUN_UNREADABLE"
        return RunSummary(
            id=run.id,
            state=state["state"],
            recipe=name,
            iterations=iterations,
            iteration=iteration,
            policy_version=version,
            error=failure,
            reason=reason,
            created=float(state["created"]),
            updated=float(state["updated"]),
        )

    def _recipe(self, run: RunDirectory) -> tuple[str, int]:
        """Name and number of iterations. Raises DataCorrupted if the recipe cannot be read."""
        path = run.root / "recipe.yaml"
        try:
            facts = os.stat(path)
        except FileNotFoundError:
            return "", 0
        signature = facts.st_mtime_ns, facts.st_size, facts.st_ino
        with self._lock:
            kept = self._recipes.get(path)
        if kept is None or kept[0] != signature:
            found: tuple[str, int] | SightlineError
            try:
                recipe = run.recipe()
                found = (recipe.name, recipe.iterations) if recipe is not None else ("", 0)
            except SightlineError as error:
                found = error
            kept = signature, found
            with self._lock:
                self._recipes[path] = kept
        if isinstance(kept[1], SightlineError):
            raise kept[1]
        return kept[1]


def _beside(unreadable: str, failure: str) -> str:
    return f"{unreadable}; it had ended with: {failure}" if failure else unreadable


def readable_state(run: RunDirectory) -> Mapping[str, Any]:
    """The whole content of run.json.

    Raises:
        PreconditionFailed: RUN_UNREADABLE: it is missing, or this version does not understand it.
    """
    try:
        state = run.state()
        if not state:
            raise PreconditionFailed(
                f"run {run.id!r} has no run.json: its directory was moved, removed or replaced", reason="RUN_UNREADABLE"
            )
        fits = state["state"] in STATES and isinstance(state["request_id"], str)
        for key in ("created", "updated"):
            fits &= 0 <= float(state[key]) < 1e11
        float(state.get("queued", 0.0))
        if not fits:
            raise ValueError(f"state {str(state['state'])[:40]!r}")
    except PreconditionFailed:
        raise
    except (SightlineError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
        raise PreconditionFailed(
            f"run {run.id!r}: its run.json cannot be read by this version ({type(error).__name__}: {str(error)[:200]})",
            reason="RUN_UNREADABLE",
        ) from None
    return state
