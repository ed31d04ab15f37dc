"""Dropped rows: counted by reason; the first ones are named, with what was wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sightline_trainer.files import read_json, write_json
from sightline_trainer.records.refusal import Refusal

MOST = 1000
"""Maximum rows kept by name; all are counted."""


class DroppedRows:
    """Rows of one file or stage that did not pass."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rows: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, row: str, refusal: Refusal) -> None:
        """Record a row, named by its file or id."""
        with self._lock:
            self.counts[refusal.reason] += 1
            if len(self.rows) < MOST:
                self.rows.append({"row": row, "reason": refusal.reason, "message": refusal.message[:500]})

    @property
    def reason(self) -> str | None:
        """The reason that all rows share, if they do."""
        return next(iter(self.counts)) if len(self.counts) == 1 else None

    @property
    def summary(self) -> str:
        """Counts and the first row, for a message: "2 PROMPT_EMPTY, 1 IMAGE_MISSING; the first is row 6: ..."."""
        return summary_of(self.counts, self.rows)

    def as_json(self) -> dict[str, Any]:
        """As JSON, for a file of the run."""
        return {"counts": dict(self.counts), "rows": self.rows}

    def write(self, path: Path) -> None:
        """Write the file; if no row was left out, there is no file."""
        if self.counts:
            write_json(path, self.as_json())
        else:
            path.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> DroppedRows:
        """Read the file; empty if there is none. Raises DataCorrupted if it is damaged."""
        dropped, found = cls(), read_json(path) or {}
        dropped.counts.update(found.get("counts", {}))
        dropped.rows = list(found.get("rows", ()))
        return dropped


def summary_of(counts: Counter[str], rows: Iterable[Mapping[str, str]]) -> str:
    """Counts by reason, the most frequent first, and the first row with what was wrong."""
    first = next(iter(rows), None)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return reasons + (f"; the first is {first.get('row') or first['prompt_id']}: {first['message']}" if first else "")
