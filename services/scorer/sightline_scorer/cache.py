"""A cache of embeddings in one matrix with a bound in bytes; the least recently used are dropped first.

Keys are SHA-256 digests of the image's or text's bytes. A table belongs to one version of one model, so the model's
weights and preprocessing are part of every key. One matrix instead of row objects makes the bound exact, and gathers
the rows of a whole request in one step. An `OrderedDict`, not cachetools: a dropped entry gives its row to the new one,
and looking up thousands of keys is a warm scorer's hot path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sightline_scorer import metrics

ENTRY_BYTES = 320
"""Bytes of an entry besides its numbers: a key, a position and a link in a dict."""


class EmbeddingTable:
    """A bounded table. Use it from one thread.

    Args:
        size: D, length of an embedding.
        max_bytes: maximum of the whole table; 0 keeps nothing.
        model: label of its metrics.
        tower: "image" or "text".
    """

    def __init__(self, size: int, max_bytes: int, model: str, tower: str) -> None:
        self.size = size
        self._row_bytes = size * 4 + ENTRY_BYTES
        capacity = max_bytes // self._row_bytes
        # Pages use memory only after the first write.
        self._rows = np.empty((capacity, size), np.float32)
        self._notes = np.empty(capacity, np.int32)
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self._capacity = capacity
        metrics.count(metrics.CACHE_BYTES, (model, tower), self, lambda table: table.used_bytes)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    @property
    def used_bytes(self) -> int:
        """Bytes of the entries."""
        return len(self._places) * self._row_bytes

    def lookup(self, keys: Sequence[bytes], rows: npt.NDArray[np.float32], notes: npt.NDArray[np.int32]) -> list[int]:
        """Fill `rows` [K, D] and `notes` [K] for known keys; returns the positions of unknown keys."""
        places = self._places
        found, positions, missing = [], [], []
        for position, key in enumerate(keys):
            place = places.get(key)
            if place is None:
                missing.append(position)
            else:
                places.move_to_end(key)
                found.append(place)
                positions.append(position)
        if not missing:
            np.take(self._rows, found, axis=0, out=rows, mode="clip")
            np.take(self._notes, found, out=notes, mode="clip")
        elif found:
            rows[positions] = self._rows[found]
            notes[positions] = self._notes[found]
        return missing

    def put(self, key: bytes, row: npt.NDArray[np.float32], note: int) -> None:
        """Store an embedding [D] with a number `note` (a text's tokens)."""
        if self._capacity == 0:
            return
        place = self._places.get(key)
        if place is None:
            place = len(self._places) if len(self._places) < self._capacity else self._places.popitem(last=False)[1]
            self._places[key] = place
        self._rows[place] = row
        self._notes[place] = note

    def clear(self) -> None:
        """Release everything, including the memory; the table keeps nothing from then on."""
        self._places.clear()
        self._capacity = 0
        self._rows = np.empty((0, self.size), np.float32)
