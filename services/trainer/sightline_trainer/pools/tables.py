"""Pools over Parquet files and over datasets of the `datasets` library.

One pass checks every row: its texts, and that it has a picture. Pictures in a table are not read for this if the file's
metadata says that none is null.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sightline.errors import InvalidInput

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.pools.fields import Fields, missing
from sightline_trainer.pools.folder import Folder
from sightline_trainer.pools.pool import Pool, id_digest, leave_out
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.row_gate import RowGate

_TEXT_ROWS, _IMAGE_ROWS = 1024, 64
_HELD = b"held"
"""Placeholder for a picture's bytes that are not needed yet."""


class _Kept:
    """The result of one pass over a table: numbers and ids of the rows that are prompts.

    Args:
        where: the table's name.
    """

    def __init__(self, where: str, fields: Fields, images: Folder, gate: RowGate | None) -> None:
        self.where, self.fields, self.images, self.gate = where, fields, images, gate
        self.rows, self.digests = array("q"), array("Q")
        self.derived: list[int] = []
        self.dropped = DroppedRows()
        self.seen = 0

    def add(self, row: Mapping[str, Any] | Exception, where: str, at: int) -> None:
        """The next row of the table, which is row `at` (from 1) of `where`."""
        number, self.seen = self.seen, self.seen + 1
        try:
            if isinstance(row, Exception):
                raise row
            prompt = self.fields.read(row, self.images, self.gate, self.images.picture)
        except InvalidInput as error:
            leave_out(self.dropped, f"{where}, row {at}", error)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self.dropped.add(f"{where}, row {at}", Refusal("DATASET_LINE", f"{type(error).__name__}: {error}"))
        else:
            if missing(row.get(self.fields.id)):
                self.derived.append(len(self.rows))
            self.rows.append(number)
            self.digests.append(id_digest(prompt.id))

    def prompt(self, row: Mapping[str, Any], where: str, at: int) -> Prompt:
        """The prompt of a kept row, with its picture in a file."""
        try:
            return self.fields.prompt_of(row, self.images, self.gate)
        except InvalidInput as error:
            raise InvalidInput(f"{where}, row {at}: {error.message}", reason=error.reason) from error


class ParquetPool(Pool):
    """Prompts of Parquet files, in the order of their names; a draw reads only the row groups that it needs, one by
    one.

    Raises:
        InvalidInput: a file can't be read, a column is missing, or no row is a prompt.
    """

    def __init__(self, files: Sequence[Path], fields: Fields, images: Folder, gate: RowGate | None = None) -> None:
        self._groups: list[tuple[Path, int, int]] = []  # file, row group, its first row in the file
        ends: list[int] = []
        name = ", ".join(map(str, files)) or "no file"
        self._kept = kept = _Kept(name, fields, images, gate)
        for path in files:
            file = parquet_file(path)
            kept.fields = _present(fields, file.schema_arrow.names, str(path))
            first = 0
            for group in range(file.num_row_groups):
                self._groups.append((path, group, first))
                for row in _group(file, group, kept.fields):
                    first += 1
                    kept.add(row, str(path), first)
                ends.append(kept.seen)
        kept.fields = fields
        self._ends = np.array(ends)
        super().__init__(name, np.array(kept.digests, np.uint64), kept.derived, kept.dropped)

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        found: dict[int, Prompt] = {}
        wanted = {self._kept.rows[number]: number for number in numbers}
        places = np.array(sorted(wanted), np.int64)
        for group in np.unique(np.searchsorted(self._ends, places, side="right")):
            path, inside, first = self._groups[group]
            start = int(self._ends[group - 1]) if group else 0
            mine = places[(places >= start) & (places < self._ends[group])] - start
            file = parquet_file(path)
            names = file.schema_arrow.names
            table = file.read_row_group(inside, _columns(self._kept.fields.within(names), names))
            for at, row in zip(mine.tolist(), table.take(mine).to_pylist(), strict=True):
                number = wanted[start + at]
                found[number] = self.named(self._kept.prompt(row, str(path), first + at + 1), number)
        return [found[number] for number in numbers]


class DatasetPool(Pool):
    """Prompts of a `datasets.Dataset`, whose Arrow files stay on disk.

    Raises:
        InvalidInput: a column is missing, or no row is a prompt.
    """

    def __init__(self, dataset: Any, name: str, fields: Fields, images: Folder, gate: RowGate | None = None) -> None:
        fields = _present(fields, dataset.column_names, name)
        self._kept = kept = _Kept(name, fields, images, gate)
        self.dataset = undecoded(dataset).select_columns(_columns(fields, dataset.column_names))
        for table in self.dataset.with_format("arrow").iter(_TEXT_ROWS):
            for row in _light(table, fields):
                kept.add(row, name, kept.seen + 1)
        super().__init__(name, np.array(kept.digests, np.uint64), kept.derived, kept.dropped)

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        places = [self._kept.rows[number] for number in numbers]
        found = [self._kept.prompt(self.dataset[place], self.name, place + 1) for place in places]
        return [self.named(prompt, number) for prompt, number in zip(found, numbers, strict=True)]


def undecoded(dataset: Any) -> Any:
    """Images as their files' bytes, not as pixels, since the sampler and the scorer decode them."""
    from datasets import Image, List

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    return dataset


def parquet_file(path: Path) -> pq.ParquetFile:
    """A file, opened. Raises InvalidInput if it is not a Parquet."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        why = next(iter(str(error).splitlines()), "empty")
        raise InvalidInput(f"{path} is not a readable Parquet file ({why})", reason="DATASET_UNREADABLE") from error


def _present(fields: Fields, columns: Sequence[str], where: str) -> Fields:
    fields = fields.within(columns)
    wanted = (fields.prompt,) if fields.prompt == "messages" else (fields.image, fields.prompt)  # they may hold images
    if lacking := [name for name in wanted if name not in columns]:
        raise InvalidInput(
            f"{where} has no column {', '.join(lacking)}; it has {', '.join(sorted(columns))}", reason="DATASET"
        )
    return fields


def _columns(fields: Fields, have: Sequence[str]) -> list[str]:
    wanted = {fields.id, fields.image, fields.prompt, fields.reference, fields.objects}
    return [name for name in have if name in wanted]


def _group(file: pq.ParquetFile, group: int, fields: Fields) -> Iterator[Mapping[str, Any] | Exception]:
    """The rows of a row group, without the bytes of pictures that are not needed."""
    columns = _columns(fields, file.schema_arrow.names)
    given = _gives_ids(file.schema_arrow, fields) and _all_there(file, group, fields.id, fields.id)
    held = fields.image in columns and fields.prompt != "messages"  # messages may need the number of images
    whole = given and held and _all_there(file, group, fields.image, "bytes")
    if whole:
        columns.remove(fields.image)
    size = _TEXT_ROWS if whole else _IMAGE_ROWS
    try:
        for batch in file.iter_batches(size, row_groups=[group], columns=columns):
            table = pa.Table.from_batches([batch])
            for row in _light(table, fields):
                yield {**row, fields.image: _HELD} if whole and isinstance(row, dict) else row
    except (pa.ArrowException, OSError) as error:
        why = next(iter(str(error).splitlines()), "it ends early")
        raise InvalidInput(
            f"a row group of a Parquet file cannot be read ({why})", reason="DATASET_UNREADABLE"
        ) from error


def _gives_ids(schema: pa.Schema, fields: Fields) -> bool:
    """Whether the table has a column of ids, none of them NaN."""
    return fields.id in schema.names and not pa.types.is_floating(schema.field(fields.id).type)


def _all_there(file: pq.ParquetFile, group: int, name: str, leaf: str) -> bool:
    """Whether a row group's statistics say that every row has exactly one value in a column."""
    facts = file.metadata.row_group(group)
    for at in range(facts.num_columns):
        column = facts.column(at)
        path = column.path_in_schema.split(".")
        if path[0] == name and path[-1] == leaf:
            known = column.statistics
            counted = known is not None and known.has_null_count and known.null_count == 0
            return bool(counted and column.num_values == facts.num_rows)
    return False


def _light(table: pa.Table, fields: Fields) -> Iterator[Mapping[str, Any] | Exception]:
    """Rows of a table, or why a row cannot be read. If a row has an id, its stored pictures are only checked for
    presence."""
    names = table.column_names
    if fields.image in names and _gives_ids(table.schema, fields) and table[fields.id].null_count == 0:
        at = names.index(fields.image)
        table = table.set_column(at, fields.image, _held(table[fields.image].combine_chunks()))
    try:
        yield from table.to_pylist()
    except ValueError:  # bytes that are not UTF-8, in one of the rows
        for row in range(len(table)):
            try:
                yield table.slice(row, 1).to_pylist()[0]
            except ValueError as error:
                yield InvalidInput(f"a text is not UTF-8 ({error})", reason="TEXT_NO_UTF8")


def _held(images: Any) -> Any:
    """A column of pictures with a few bytes instead of each stored picture; other columns unchanged."""
    kind = images.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and kind.get_field_index("path") >= 0:
        held, path = images.field("bytes"), images.field("path")
        valid = pc.and_(images.is_valid(), held.is_valid())
        empty = pc.equal(pc.binary_length(held), 0)
        marked = pc.if_else(valid, pc.if_else(empty, pa.scalar(b""), pa.scalar(_HELD)), None)
        paths = pc.if_else(images.is_valid(), path, None)
        return pa.StructArray.from_arrays([marked.cast(pa.binary()), paths], names=["bytes", "path"])
    return images
