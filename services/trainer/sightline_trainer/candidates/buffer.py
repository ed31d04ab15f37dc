"""`buffer`: pairs of earlier iterations, mixed in with the fresh ones (SAPO, OViP), none older than allowed.

They keep their token ids, rewards and policy versions, so every row shows how stale its pair is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext
from sightline_trainer.files import read_table


class Buffer(CandidatePart):
    """Pairs of earlier iterations."""

    max_age: int = Field(1, ge=1, le=1000, description="Maximum age of a pair, in iterations.")
    share: float = Field(0.25, gt=0.0, lt=1.0, description="Maximum share of old pairs in an update.")

    def open(self, context: SourceContext) -> Source | None:
        return None

    def draw(self, earlier: Sequence[Path], fresh: int, seed: int) -> Iterator[dict[str, Any]]:
        """Rows of `pairs.parquet` files of earlier iterations, each row at most once.

        Args:
            earlier: the files, oldest first; only the last `max_age` are checked.
            fresh: number of fresh pairs.
            seed: the same seed draws the same rows.
        """
        own: list[tuple[Path, list[int]]] = []
        for path in earlier[-self.max_age :]:
            made = read_table(path, columns=["iteration"])["iteration"].to_pylist() if path.is_file() else []
            # Pairs that came from a buffer would count twice and be older than their file.
            own.append((path, [at for at, iteration in enumerate(made) if iteration == int(path.parent.name)]))
        places = [(path, at) for path, rows in own for at in rows]
        wanted = min(math.floor(fresh * self.share / (1 - self.share)), len(places))
        drawn = set(random.Random(seed).sample(range(len(places)), wanted))  # noqa: S311 - a draw, no secret
        for path, _ in own:
            rows = [at for number, (of, at) in enumerate(places) if number in drawn and of == path]
            if rows:
                yield from read_table(path).take(rows).to_pylist()
