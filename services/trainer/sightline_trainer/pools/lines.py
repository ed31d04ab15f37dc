"""A pool over JSON objects in one file, one per line (JSONL) or as items of one array (LLaVA's files).

One pass checks every object and records its position; a drawn row is read by its position. A line longer than the bound
is skipped piece by piece and never held in memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sightline.errors import InvalidInput

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.pools.file_format import BOM, not_lines
from sightline_trainer.pools.pool import Pool, id_digest, leave_out
from sightline_trainer.records.prompt import Prompt

Reader = Callable[[dict[str, Any], int], Prompt | None]
"""Makes a prompt from the object with this number (from 1), or None if it has no image; raises InvalidInput."""

CHUNK = 1 << 20
MOST_LINE = 16 << 20
"""Maximum bytes of a line, or characters of an item: no row of texts is longer."""


class LinesPool(Pool):
    """Prompts of a JSON file; an object that is not a prompt is left out and counted.

    Args:
        id_field: the key of an object's id, if it has one.

    Raises:
        InvalidInput: it contains no prompt.
    """

    def __init__(self, path: Path, reader: Reader, *, as_array: bool = False, id_field: str = "id") -> None:
        self.path = path
        self.reader = reader
        derived: list[int] = []
        dropped = DroppedRows()
        starts, ends, numbers, digests = array("q"), array("q"), array("q"), array("Q")
        for number, start, end, text, decoded in (_items if as_array else _lines)(path):
            try:
                row, prompt = self._read(text, number, decoded)
            except InvalidInput as error:
                leave_out(dropped, f"{path}, line {number}", error)
                continue
            if prompt is not None:
                derived += [len(starts)] if row.get(id_field) is None else []
                starts.append(start)
                ends.append(end)
                numbers.append(number)
                digests.append(id_digest(prompt.id))
        if not starts and not as_array and set(dropped.counts) <= {"DATASET_LINE"} and (fault := not_lines(path)):
            raise fault
        self._starts, self._ends, self._numbers = starts, ends, numbers
        super().__init__(str(path), np.array(digests, np.uint64), derived, dropped)

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        found: dict[int, Prompt] = {}
        with self.path.open("rb") as file:
            for number in sorted(set(numbers)):
                file.seek(self._starts[number])
                text = file.read(self._ends[number] - self._starts[number])
                try:
                    _, prompt = self._read(text, self._numbers[number])
                except InvalidInput as error:
                    raise self._changed(number, error.message) from error
                if prompt is None:
                    raise self._changed(number, "no image")
                found[number] = self.named(prompt, number)
        return [found[number] for number in numbers]

    def _changed(self, number: int, why: str) -> InvalidInput:
        return InvalidInput(
            f"{self.path} changed while it was read: line {self._numbers[number]}: {why}", reason="DATASET_CHANGED"
        )

    def _read(self, text: bytes | None, number: int, decoded: Any = None) -> tuple[dict[str, Any], Prompt | None]:
        if text is None:
            raise InvalidInput(f"the line is longer than {MOST_LINE} bytes", reason="LINE_TOO_LONG")
        try:
            row = json.loads(text) if decoded is None else decoded
            if not isinstance(row, dict):
                raise TypeError("no object")
            return row, self.reader(row, number)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidInput(
                f"needs an object with image and prompt ({type(error).__name__}: {error})", reason="DATASET_LINE"
            ) from error


def bounded_lines(file: BinaryIO) -> Iterator[tuple[int, int, int, bytes | None]]:
    """(number from 1, start, end, text) of each line; the text is None if the line is longer than the bound."""
    number = at = 0
    while line := file.readline(MOST_LINE + 1):
        number, start, at = number + 1, at, at + len(line)
        if len(line) <= MOST_LINE or line.endswith(b"\n"):
            yield number, start, at, line
            continue
        while not line.endswith(b"\n") and (line := file.readline(CHUNK)):
            at += len(line)
        yield number, start, at, None


def _lines(path: Path) -> Iterator[tuple[int, int, int, bytes | None, Any]]:
    with path.open("rb") as file:
        for number, start, end, line in bounded_lines(file):
            if line is None or line.strip():
                yield number, start, end, line, None


def _items(path: Path) -> Iterator[tuple[int, int, int, bytes | None, Any]]:
    """The objects of a JSON array, with a chunk of the file in memory at a time; decoded unless a byte is no UTF-8."""
    decoder, buffer = json.JSONDecoder(), ""
    number = at = place = 0  # the item; position in the buffer (characters); position in the file (bytes)
    with path.open("rb") as start:
        if start.read(len(BOM)) == BOM:
            place = len(BOM)  # "utf-8-sig" skips it
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n,[":
                at, place = at + 1, place + 1
            if at < len(buffer) and buffer[at] == "]":
                return
            try:
                decoded, end = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError) as error:
                long = len(buffer) - at > MOST_LINE
                more = "" if long or isinstance(error, RecursionError) else file.read(CHUNK)
                if not more and at == len(buffer):
                    return
                if not more:
                    why = f": item {number + 1} is longer than {MOST_LINE} characters" if long else ""
                    raise InvalidInput(f"{path} is not an array of JSON objects{why}", reason="DATASET_LINE") from None
                buffer, at = buffer[at:] + more, 0
                continue
            try:
                text = buffer[at:end].encode()
            except UnicodeEncodeError:
                text, decoded = buffer[at:end].encode("utf-8", "surrogateescape"), None
            number += 1
            yield number, place, place + len(text), text, decoded
            at, place = end, place + len(text)
