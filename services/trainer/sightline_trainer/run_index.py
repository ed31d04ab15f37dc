"""Index of a directory's runs: the content of each run.json, read again only if the file was replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import PreconditionFailed

from sightline_trainer.runs import RunDirectory
from sightline_trainer.summaries import readable_state


@dataclass(frozen=True, slots=True)
class RunEntry:
    """The indexed fields of a run.

    Attributes:
        ours: whether it was started through the service; a run with an unreadable run.json may have been.
        created: seconds since 1970; 0 if it cannot be read.
        request_id: id of the request that started it; "" if it cannot be read.
    """

    ours: bool
    created: float
    request_id: str


class RunIndex:
    """The runs under `root`. A call costs a `stat` for each run, and may block: not for the event loop. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Path, tuple[tuple[int, ...], RunEntry]] = {}

    def list(self) -> list[RunDirectory]:
        """All runs that were started through the service, newest first; unreadable ones last."""
        found = [(entry.created, RunDirectory(path.parent)) for path, entry in self._look() if entry.ours]
        return [run for _, run in sorted(found, key=lambda each: (-each[0], each[1].id))]

    def of_request(self, request_id: str) -> RunDirectory | None:
        """The run that a request started."""
        for path, entry in self._look():
            if entry.ours and entry.request_id == request_id:
                return RunDirectory(path.parent)
        return None

    def _look(self) -> Iterator[tuple[Path, RunEntry]]:
        known, seen = self._known, {}
        for path in self._root.glob("*/run.json"):
            try:
                facts = path.stat()
            except OSError:  # deleted meanwhile, or unreadable
                continue
            # A run.json is replaced by a rename, so new content means a new inode.
            mark = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            before = known.get(path)
            seen[path] = (
                before if before is not None and before[0] == mark else (mark, _read(RunDirectory(path.parent)))
            )
        self._known = seen
        for path, (_, entry) in seen.items():
            yield path, entry


def is_ours(run: RunDirectory) -> bool:
    """Whether a run was started through the service; one with an unreadable run.json may have been."""
    try:
        return (run.root / "run.json").exists() and ("request_id" in run.state() or not run.state())
    except Exception:
        return True


def state_of(run: RunDirectory) -> Mapping[str, Any] | None:
    """The content of run.json; None if it cannot be read."""
    try:
        return readable_state(run)
    except PreconditionFailed:
        return None


def _read(run: RunDirectory) -> RunEntry:
    state = state_of(run)
    if state is None:
        return RunEntry(is_ours(run), 0.0, "")
    return RunEntry(True, float(state["created"]), state["request_id"])
