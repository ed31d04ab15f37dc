"""Pool: all prompts of a dataset, by number; a row is read when it is drawn.

A pool holds 16 bytes a prompt (its place in the file and a digest of its id), so one of millions fits anywhere.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sightline.errors import InvalidInput

from sightline_trainer.records.prompt import Prompt


def id_digest(id_: str) -> int:
    """64 bits of a prompt's id, to find ids that stand twice."""
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "big")


class Pool(ABC):
    """Prompts of one dataset in file order. `digests`: uint64 [prompts], of their ids.

    Raises:
        InvalidInput: the dataset is empty, or two prompts have one id.
    """

    def __init__(self, name: str, digests: npt.NDArray[np.uint64]) -> None:
        self.name = name
        self.digests = digests
        self._order: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None
        if not len(digests):
            raise InvalidInput(f"{name} has no prompt with an image", reason="DATASET_EMPTY")
        ranked = np.argsort(digests, kind="stable")
        equal = np.flatnonzero(digests[ranked][1:] == digests[ranked][:-1])
        if len(equal):
            first, second = sorted(int(row) for row in ranked[equal[0] : equal[0] + 2])
            raise InvalidInput(
                f"{name}: prompts {first + 1} and {second + 1} have the same id; ids must be unique",
                reason="DATASET_ID_TWICE",
            )

    def __len__(self) -> int:
        return len(self.digests)

    @abstractmethod
    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        """The prompts of these numbers (from 0), in their order."""

    def head(self, count: int | None = None) -> list[Prompt]:
        """The first prompts, or all."""
        return self.rows(range(len(self) if count is None else min(count, len(self))))

    def draw(self, count: int, *, iteration: int, seed: int) -> list[Prompt]:
        """The prompts of one iteration (from 1): walks seeded shuffles of the pool, so that none comes twice before
        all came once. The same arguments give the same prompts."""
        epoch, offset = divmod((iteration - 1) * count, len(self))
        drawn: list[int] = []
        while len(drawn) < count:
            drawn.extend(self._shuffled(seed, epoch)[offset : offset + count - len(drawn)].tolist())
            epoch, offset = epoch + 1, 0
        return self.rows(drawn)

    def _shuffled(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), np.random.default_rng([seed, epoch]).permutation(len(self))
        return self._order[1]
