"""Released preference sets by number, from JSON (an array or lines), Parquet or the `datasets` library.

FILE.json, FILE.jsonl, FILE.parquet, DIRECTORY of Parquet files     ?images=DIRECTORY if pictures are elsewhere
datasets:NAME?split=train
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sightline.errors import InvalidInput

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.pools.dataset_name import loaded_dataset, split_reference
from sightline_trainer.pools.file_format import is_array, is_parquet
from sightline_trainer.pools.folder import Folder
from sightline_trainer.pools.lines import LinesPool
from sightline_trainer.pools.pool import Pool, id_digest, leave_out
from sightline_trainer.pools.released import released
from sightline_trainer.pools.tables import parquet_file, undecoded
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.row_gate import RowGate

_ROWS = 16


def open_preferences(reference: str, cache: Path | None = None, gate: RowGate | None = None) -> Pool:
    """The set that a reference names; its prompts are `Released`. Unusable rows are listed in its `dropped`.

    Raises:
        InvalidInput: there is no such set, or none of its rows can be used.
    """
    scheme, place, query = split_reference(reference)
    images = Path(query.pop("images")).expanduser() if "images" in query else None
    split = query.pop("split", None)
    if query or scheme not in ("", "datasets"):
        raise InvalidInput(
            f"{reference}: a set of preferences is a file, a directory of Parquet files or datasets:NAME, with images "
            "and split after ?",
            reason="DATASET",
        )
    if scheme == "datasets":
        dataset, roots = loaded_dataset(place, split)
        folder = Folder(images or (Path(place) if Path(place).is_dir() else roots[0]), cache, roots)
        return _DatasetPreferences(undecoded(dataset), f"datasets:{place}", folder, gate)
    path = Path(place).expanduser()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise InvalidInput(
            f"no set of preferences at {path}: name a JSON, JSONL or Parquet file, or a directory of Parquet files",
            reason="DATASET_NOT_FOUND",
        )
    folder = Folder(images or (path if path.is_dir() else path.parent), cache)
    if is_parquet(files[0]):
        return _ParquetPreferences(files, folder, gate)
    return LinesPool(path, lambda row, number: released(row, number, folder, gate), as_array=is_array(path))


class _TablePreferences(Pool):
    """Rows of a table, checked in one pass."""

    def __init__(self, name: str, folder: Folder, gate: RowGate | None) -> None:
        self.folder, self.gate = folder, gate
        self._kept, digests, dropped = array("q"), array("Q"), DroppedRows()
        for number, row in enumerate(self._all(), 1):
            try:
                if isinstance(row, Exception):
                    raise row
                digests.append(id_digest(self._released(row, number).id))
                self._kept.append(number)
            except InvalidInput as error:
                leave_out(dropped, f"{name}, row {number}", error)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                dropped.add(f"{name}, row {number}", Refusal("DATASET_LINE", f"{type(error).__name__}: {error}"))
        super().__init__(name, np.array(digests, np.uint64), (), dropped)

    def _released(self, row: dict[str, Any], number: int) -> Prompt:
        return released(row, number, self.folder, self.gate)

    def _all(self) -> Iterator[dict[str, Any] | Exception]:
        raise NotImplementedError


class _ParquetPreferences(_TablePreferences):
    def __init__(self, files: Sequence[Path], folder: Folder, gate: RowGate | None) -> None:
        self.files = [parquet_file(path) for path in files]
        super().__init__(", ".join(map(str, files)), folder, gate)

    def _all(self) -> Iterator[dict[str, Any] | Exception]:
        for file in self.files:
            for batch in file.iter_batches(_ROWS):
                for at in range(len(batch)):
                    try:
                        yield batch.slice(at, 1).to_pylist()[0]
                    except ValueError as error:  # bytes that are not UTF-8
                        yield InvalidInput(f"a text is not UTF-8 ({error})", reason="TEXT_NO_UTF8")

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        wanted = {self._kept[number] for number in numbers}
        found: dict[int, Prompt] = {}
        first = 1
        for file in self.files:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                mine = sorted(number - first for number in wanted if first <= number < first + count)
                if mine:
                    rows = file.read_row_group(group).take(mine).to_pylist()
                    found |= {first + at: self._released(row, first + at) for at, row in zip(mine, rows, strict=True)}
                first += count
        return [found[self._kept[number]] for number in numbers]


class _DatasetPreferences(_TablePreferences):
    def __init__(self, dataset: Any, name: str, folder: Folder, gate: RowGate | None) -> None:
        self.dataset = dataset
        super().__init__(name, folder, gate)

    def _all(self) -> Iterator[dict[str, Any] | Exception]:
        yield from self.dataset

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        return [self._released(self.dataset[self._kept[number] - 1], self._kept[number]) for number in numbers]
