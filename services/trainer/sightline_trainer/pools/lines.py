"""Lines: a pool over JSON objects in one file, one a line (JSONL) or as the items of one array (LLaVA's files).

One pass notes where each object stands; a drawn row is read by its place.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sightline.errors import InvalidInput

from sightline_trainer.pools.pool import Pool, id_digest
from sightline_trainer.records.prompt import Prompt

Reader = Callable[[dict[str, Any], int], Prompt | None]
"""Makes a prompt of the object with this number (from 1), or None for one that has no image."""

CHUNK = 1 << 20


class LinesPool(Pool):
    """Prompts of a JSON file.

    Args:
        id_field: where an object has its id, if it has one.

    Raises:
        InvalidInput: an object can't be read; the message names it.
    """

    def __init__(self, path: Path, reader: Reader, *, as_array: bool = False, id_field: str = "id") -> None:
        self.path = path
        self.reader = reader
        derived: list[int] = []
        starts, ends, numbers, digests = array("q"), array("q"), array("q"), array("Q")
        for number, (start, end, text) in enumerate((_items if as_array else _lines)(path), 1):
            row, prompt = self._read(text, number)
            if prompt is not None:
                derived += [len(starts)] if row.get(id_field) is None else []
                starts.append(start)
                ends.append(end)
                numbers.append(number)
                digests.append(id_digest(prompt.id))
        self._starts, self._ends, self._numbers = starts, ends, numbers
        super().__init__(str(path), np.array(digests, np.uint64), derived)

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        found: dict[int, Prompt] = {}
        with self.path.open("rb") as file:
            for number in sorted(set(numbers)):
                file.seek(self._starts[number])
                text = file.read(self._ends[number] - self._starts[number])
                _, prompt = self._read(text, self._numbers[number])
                if prompt is None:
                    raise InvalidInput(f"{self.path} was changed while it was read", reason="DATASET_CHANGED")
                found[number] = self.named(prompt, number)
        return [found[number] for number in numbers]

    def _read(self, text: bytes, number: int) -> tuple[dict[str, Any], Prompt | None]:
        try:
            row = json.loads(text)
            if not isinstance(row, dict):
                raise TypeError("no object")
            return row, self.reader(row, number)
        except InvalidInput as error:
            raise InvalidInput(f"{self.path}, line {number}: {error.message}", reason=error.reason) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidInput(
                f"{self.path}, line {number}: needs an object with image and prompt ({type(error).__name__}: {error})",
                reason="DATASET_LINE",
            ) from error


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield at, at + len(line), line
            at += len(line)


def _items(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The objects of a JSON array, with a chunk of the file in memory at a time."""
    decoder, buffer = json.JSONDecoder(), ""
    at = place = 0  # in the buffer, in characters; in the file, in bytes
    with path.open(encoding="utf-8", newline="") as file:
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n,[":
                at, place = at + 1, place + 1
            if at < len(buffer) and buffer[at] == "]":
                return
            try:
                _, end = decoder.raw_decode(buffer, at)
            except ValueError:
                more = file.read(CHUNK)
                if not more and at == len(buffer):
                    return
                if not more:
                    raise InvalidInput(f"{path} is no array of JSON objects", reason="DATASET_LINE") from None
                buffer, at = buffer[at:] + more, 0
                continue
            text = buffer[at:end].encode()
            yield place, place + len(text), text
            at, place = end, place + len(text)
