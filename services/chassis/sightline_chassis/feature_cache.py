"""A cache of image features, bounded in bytes; the least recently used are dropped first."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FeatureCache(LRUCache[K, V]):
    """A cache of arrays or lists of arrays (anything with `nbytes`). Use it from one thread.

    Attributes:
        misses: how often `get` did not find the features.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, getsizeof=_bytes)
        self.misses = 0

    def get(self, key: K, default: Any = None) -> Any:
        """The features, or the default, which counts as a miss."""
        if key in self:
            return self[key]
        self.misses += 1
        return default

    def put(self, key: K, features: V) -> None:
        """Keep the features, unless they alone are too large."""
        if self.getsizeof(features) <= self.maxsize:
            self[key] = features

    def forget(self, which: Callable[[K], bool]) -> None:
        """Drop the features of all keys for which `which` is true."""
        for key in list(filter(which, self)):
            del self[key]


def _bytes(features: Any) -> int:
    return sum(_bytes(one) for one in features) if isinstance(features, list) else int(features.nbytes)
