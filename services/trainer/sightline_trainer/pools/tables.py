"""Tables: pools over Parquet files and over datasets of the `datasets` library."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sightline.errors import InvalidInput

from sightline_trainer.pools.fields import Fields, content_id
from sightline_trainer.pools.folder import Folder
from sightline_trainer.pools.pool import Pool, id_digest
from sightline_trainer.records.prompt import Prompt


class ParquetPool(Pool):
    """Prompts of Parquet files, in the order of their names; the row groups that a draw touches are read one by one.

    Raises:
        InvalidInput: a column is missing, or a row is no prompt.
    """

    def __init__(self, files: Sequence[Path], fields: Fields, images: Folder) -> None:
        self.fields, self.images = fields, images
        self._groups: list[tuple[Path, int]] = []
        ends: list[int] = []
        derived: list[int] = []
        digests = array("Q")
        for path in files:
            file = pq.ParquetFile(path)
            have = set(file.schema_arrow.names)
            if missing := [name for name in (fields.image, fields.prompt) if name not in have]:
                raise InvalidInput(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(sorted(have))}", reason="DATASET"
                )
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                known: list[Any] = [None] * rows
                if fields.id in have:
                    known = file.read_row_group(group, [fields.id])[fields.id].to_pylist()
                start = ends[-1] if ends else 0
                if None in known:
                    table = file.read_row_group(group, [fields.image, fields.prompt]).to_pylist()
                    for at, row in enumerate(table):
                        if known[at] is None:
                            derived.append(start + at)
                            known[at] = _derived(row, fields, images, start + at, str(path))
                digests.extend(id_digest(str(value)) for value in known)
                self._groups.append((path, group))
                ends.append(start + rows)
        self._ends = np.array(ends)
        super().__init__(", ".join(map(str, files)) or "no file", np.array(digests, np.uint64), derived)

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        columns = {self.fields.id, self.fields.image, self.fields.prompt, self.fields.reference, self.fields.objects}
        found: dict[int, Prompt] = {}
        wanted = np.array(sorted(set(numbers)))
        for group in np.unique(np.searchsorted(self._ends, wanted, side="right")):
            path, inside = self._groups[group]
            start = int(self._ends[group - 1]) if group else 0
            mine = wanted[(wanted >= start) & (wanted < self._ends[group])]
            file = pq.ParquetFile(path)
            table = file.read_row_group(inside, [name for name in file.schema_arrow.names if name in columns])
            for number, row in zip(mine.tolist(), table.take(mine - start).to_pylist(), strict=True):
                prompt = _prompt(row, self.fields, self.images, number, str(path))
                found[number] = self.named(prompt, number)
        return [found[number] for number in numbers]


class DatasetPool(Pool):
    """Prompts of a `datasets.Dataset`, whose Arrow files stay on disk.

    Raises:
        InvalidInput: a column is missing, or a row is no prompt.
    """

    def __init__(self, dataset: Any, name: str, fields: Fields, images: Folder) -> None:
        self.fields, self.images = fields, images
        if missing := [column for column in (fields.image, fields.prompt) if column not in dataset.column_names]:
            raise InvalidInput(
                f"{name} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}", reason="DATASET"
            )
        self.dataset = _undecoded(dataset)
        ids: list[Any] = [None] * len(dataset)
        if fields.id in dataset.column_names:
            batches = self.dataset.select_columns(fields.id).iter(1000)
            ids = [value for batch in batches for value in batch[fields.id]]
        derived = [number for number, value in enumerate(ids) if value is None]
        for number in derived:
            ids[number] = _derived(self.dataset[number], fields, images, number, name)
        super().__init__(name, np.fromiter((id_digest(str(each)) for each in ids), np.uint64), derived)

    def rows(self, numbers: Sequence[int]) -> list[Prompt]:
        found = [_prompt(self.dataset[number], self.fields, self.images, number, self.name) for number in numbers]
        return [self.named(prompt, number) for prompt, number in zip(found, numbers, strict=True)]


def _undecoded(dataset: Any) -> Any:
    """Images as their files' bytes, not as pixels: the sampler and the scorer decode them themselves."""
    from datasets import Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def _derived(row: dict[str, Any], fields: Fields, images: Folder, number: int, where: str) -> str:
    """The id of a row that was given none; one without a picture is told where it is drawn."""
    try:
        image = b"" if row[fields.image] is None else images.picture(row[fields.image])
    except InvalidInput as error:
        raise InvalidInput(f"{where}, row {number + 1}: {error.message}", reason=error.reason) from error
    return content_id(image, str(row[fields.prompt]))


def _prompt(row: dict[str, Any], fields: Fields, images: Folder, number: int, where: str) -> Prompt:
    try:
        return fields.prompt_of(row, images.image(row[fields.image]))
    except InvalidInput as error:
        raise InvalidInput(f"{where}, row {number + 1}: {error.message}", reason=error.reason) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{where}, row {number + 1}: {error}", reason="DATASET_LINE") from error
