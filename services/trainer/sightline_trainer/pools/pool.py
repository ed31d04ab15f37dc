"""Pool: all prompts of a dataset, by number; a row is read when it is drawn.

A pool holds 16 bytes per prompt (its position in the file and a digest of its id), so millions fit in memory. A row
that is not a prompt, or has texts that the model cannot take, is left out when the pool is made, named and counted.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sightline.errors import InvalidInput

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.refusal import Refusal


def id_digest(id_: str) -> int:
    """64 bits of a prompt's id, to find duplicate ids."""
    return int.from_bytes(hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def leave_out(dropped: DroppedRows, where: str, error: InvalidInput) -> None:
    """Record a row that is not a prompt.

    Raises:
        InvalidInput: it names a picture outside the dataset: that is not one row's mistake, and is reported at once.
    """
    if error.reason == "IMAGE_OUTSIDE":
        raise InvalidInput(f"{where}: {error.message}", reason=error.reason) from error
    dropped.add(where, Refusal(error.reason, error.message))


class Pool(ABC):
    """Prompts of one dataset in file order.

    Args:
        digests: uint64 [prompts], digests of their ids.
        derived: rows without an id, whose id is a digest of picture and text; if two are equal, the later one's row
            number is added.
        dropped: rows that were left out.

    Raises:
        InvalidInput: the dataset is empty, none of its rows can be used, or two prompts have the same id.
    """

    def __init__(
        self,
        name: str,
        digests: npt.NDArray[np.uint64],
        derived: Collection[int] = (),
        dropped: DroppedRows | None = None,
    ) -> None:
        self.name = name
        self.digests = digests
        self.dropped = DroppedRows() if dropped is None else dropped
        self._order: tuple[tuple[int, int, int], npt.NDArray[np.int64]] | None = None
        if not len(digests) and self.dropped:
            raise InvalidInput(
                f"{name}: none of {len(self.dropped)} rows can be used: {self.dropped.summary}",
                reason=self.dropped.reason or "DATASET_EMPTY",
            )
        if not len(digests):
            raise InvalidInput(
                f"{name} has no prompt with an image: check the file and its columns", reason="DATASET_EMPTY"
            )
        self._again: dict[int, str] = {}
        self._again = self._equal(set(derived))  # uses `rows`, which has none yet
        for number, id_ in self._again.items():
            self.digests[number] = id_digest(id_)
        digests = self.digests
        ranked = np.argsort(digests, kind="stable")
        equal = np.flatnonzero(digests[ranked][1:] == digests[ranked][:-1])
        if len(equal):
            first, second = sorted(int(row) for row in ranked[equal[0] : equal[0] + 2])
            (same,) = self.rows([first])
            raise InvalidInput(
                f"{name}: prompts {first + 1} and {second + 1} have the same id, {same.id[:100]}; ids must be unique: "
                "correct them, or name another column as ?id=NAME (without one, ids come from pictures and prompts)",
                reason="DATASET_ID_TWICE",
            )

    def _equal(self, derived: set[int]) -> dict[int, str]:
        """Row -> id, of derived ids that an earlier row has too."""
        ranked = np.argsort(self.digests, kind="stable")
        later = ranked[1:][self.digests[ranked][1:] == self.digests[ranked][:-1]]
        rows = [int(row) for row in later if int(row) in derived]
        return {row: f"{prompt.id}-{row + 1}" for row, prompt in zip(rows, self.rows(rows), strict=True)}

    def named(self, prompt: Prompt, number: int) -> Prompt:
        """The prompt of a row, with the row's number in its id if an earlier row has the same picture and text."""
        return replace(prompt, id=self._again[number]) if number in self._again else prompt

    def __len__(self) -> int:
        return len(self.digests)

    @abstractmethod
    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        """The prompts with these numbers (from 0), in this order."""

    def head(self, count: int | None = None) -> list[Prompt]:
        """The first prompts, or all."""
        return self.rows(range(len(self) if count is None else min(count, len(self))))

    def draw(self, count: int, *, iteration: int, seed: int) -> list[Prompt]:
        """The prompts of one iteration (from 1): `count`, or all if there are fewer. Walks seeded shuffles of the pool,
        so that no prompt comes twice before all came once, or twice in one iteration. The same arguments give the same
        prompts."""
        count = min(count, len(self))
        epoch, offset = divmod((iteration - 1) * count, len(self))
        drawn = self._shuffled(seed, epoch, count)[offset : offset + count].tolist()
        if len(drawn) < count:
            drawn += self._shuffled(seed, epoch + 1, count)[: count - len(drawn)].tolist()
        return self.rows(drawn)

    def _shuffled(self, seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != (seed, epoch, count):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            # The iteration in which this walk starts has drawn these from the previous walk: they come last now.
            already = epoch * len(self) % count
            if already:
                late = np.isin(order, self._shuffled(seed, epoch - 1, count)[-already:])
                order = np.concatenate([order[~late], order[late]])
            self._order = (seed, epoch, count), order
        return self._order[1]
