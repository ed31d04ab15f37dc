"""Reference: how a recipe names a dataset.

    DIRECTORY                                        with prompts.jsonl, or with *.parquet
    FILE.jsonl, FILE.parquet
    llava:FILE.json?images=DIRECTORY                 LLaVA's conversations; &turns=last asks their last question
    datasets:NAME?split=train&prompt=question        a dataset of the `datasets` library, by name or directory

A query after `?` renames columns: `id`, `image`, `prompt`, `reference`, `objects`; `images` sets the directory of the
image files, if it is not that of the file. A path that exists may have `?` in its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sightline.errors import InvalidInput

from sightline_trainer.places import split_query
from sightline_trainer.pools.fields import Fields
from sightline_trainer.pools.file_format import is_array, is_parquet
from sightline_trainer.pools.folder import Folder, is_address
from sightline_trainer.pools.lines import LinesPool
from sightline_trainer.pools.llava import conversations
from sightline_trainer.pools.pool import Pool
from sightline_trainer.pools.tables import DatasetPool, ParquetPool
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate

SCHEMES = ("llava", "datasets")
_LIBRARYS = ("dataset_dict.json", "state.json", "*/*.parquet", "metadata.csv", "metadata.jsonl", "*.tar", "*.csv")
"""Files of a directory that the `datasets` library reads, by load_from_disk or as a dataset of its own."""


def split_reference(reference: str) -> tuple[str, str, dict[str, str]]:
    """(scheme or "", place, query) of a reference.

    Raises:
        InvalidInput: a key of the query has no value.
    """
    scheme, rest = _split_scheme(reference)
    place, _, query = split_query(rest)
    named = dict(parse_qsl(query, keep_blank_values=True))
    if empty := [key for key, value in named.items() if not value]:
        raise InvalidInput(
            f"{reference}: {empty[0]} after ? has no value: give one, as in ?prompt=question, or correct the path "
            "before ? if it belongs to a name",
            reason="DATASET",
        )
    return scheme, place, named


def _split_scheme(reference: str) -> tuple[str, str]:
    scheme, colon, rest = reference.partition(":")
    return (scheme, rest) if colon and scheme in SCHEMES else ("", reference)


def side_files(reference: str) -> Path:
    """Directory with a dataset's further files: vocabulary.json, questions.jsonl."""
    _, place, _ = split_reference(reference)
    path = Path(place).expanduser()
    return path.parent if path.is_file() else path


def directories(reference: str) -> list[Path]:
    """The directories on this machine that a reference reads: the dataset's, and its images'. Those of a reference
    whose file has `?` in its name are also those that it would read without that file."""
    scheme, rest = _split_scheme(reference)
    found = []
    for place, _, query in dict.fromkeys((split_query(rest), rest.partition("?"))):
        path, images = Path(place).expanduser(), dict(parse_qsl(query)).get("images")
        if images is not None:
            found.append(Path(images).expanduser())
        if scheme != "datasets" or os.path.lexists(path):
            found.append(path)
    return found


def open_pool(reference: str | Path, cache: Path | None = None, gate: RowGate | None = None) -> Pool:
    """The pool that a reference names. Rows that are not prompts are left out and listed in its `dropped`.

    Args:
        reference: see the module.
        cache: directory for images that a table stores as bytes; without it such a table is refused.
        gate: the model's gate: rows with texts that it cannot take are left out too.

    Raises:
        InvalidInput: there is no such dataset, or a part of it can't be read; the message says what.
    """
    scheme, place, query = split_reference(str(reference))
    if not place or is_address(place):
        raise InvalidInput(
            f"{place!r} names no dataset on this machine: name a directory or file, downloaded before, or "
            "datasets:NAME?split=train",
            reason="DATASET_NOT_FOUND",
        )
    path = Path(place).expanduser()
    images = Path(query.pop("images")).expanduser() if "images" in query else None
    if scheme == "llava":
        asked = query.pop("turns", "first")
        _nothing_left(query, str(reference), "images", "turns")
        if asked not in ("first", "last"):
            raise InvalidInput(f"{reference}: turns is {asked!r}; known are first and last", reason="DATASET")
        folder = Folder(images or path.parent)
        reader = conversations(folder, gate, asked="last" if asked == "last" else "first")
        return LinesPool(_there(path, "a JSON file of LLaVA's conversations"), reader, as_array=True)
    if scheme == "datasets":
        split = query.pop("split", None)
        return _from_datasets(place, split, Fields.named(query, str(reference)), images, cache, gate)
    fields = Fields.named(query, str(reference))
    if path.is_dir() and not (path / "prompts.jsonl").is_file():
        if not (files := sorted(file for file in path.glob("*.parquet") if file.is_file())):
            of_library = any(next(path.glob(each), None) is not None for each in _LIBRARYS)
            fix = (
                f"the `datasets` library reads it, as datasets:{path}"
                if of_library
                else "name a directory that has one, a file, or llava:FILE?images=DIRECTORY, datasets:NAME?split=train"
            )
            raise InvalidInput(
                f"no dataset at {path}: it has neither prompts.jsonl nor a Parquet file; {fix}",
                reason="DATASET_NOT_FOUND",
            )
        return ParquetPool(files, fields, Folder(images or path, cache), gate)
    file = path / "prompts.jsonl" if path.is_dir() else _there(path, "a directory with prompts.jsonl, or a file")
    folder = Folder(images or file.parent, cache)
    if is_parquet(file):
        return ParquetPool([file], fields, folder, gate)
    return LinesPool(
        file,
        lambda row, number: fields.prompt_of(row, folder, gate),
        as_array=is_array(file),
        id_field=fields.id,
    )


def load_prompts(reference: str | Path, count: int | None = None, cache: Path | None = None) -> list[Prompt]:
    """The first `count` prompts of a dataset, or all; in file order.

    Raises:
        InvalidInput: see `open_pool`.
    """
    return open_pool(reference, cache).head(count)


def _there(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InvalidInput(f"there is nothing at {path}: name {what}", reason="DATASET_NOT_FOUND")
    return path


def _nothing_left(query: dict[str, str], reference: str, *known: str) -> None:
    if query:
        raise InvalidInput(
            f"{reference}: unknown {', '.join(sorted(query))}; known are {', '.join(known)}", reason="DATASET"
        )


def _from_datasets(
    place: str, split: str | None, fields: Fields, images: Path | None, cache: Path | None, gate: RowGate | None
) -> Pool:
    dataset, downloaded = loaded_dataset(place, split)
    folder = Folder(images or (Path(place) if Path(place).is_dir() else downloaded[0]), cache, downloaded)
    return DatasetPool(dataset, f"datasets:{place}", fields, folder, gate)


def loaded_dataset(place: str, split: str | None) -> tuple[Any, list[Path]]:
    """A dataset of the `datasets` library, and the directories of its downloaded files.

    Args:
        split: None: train, or the only one that `save_to_disk` wrote.

    Raises:
        InvalidInput: DATASET_NOT_FOUND.
    """
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        if (Path(place) / "state.json").is_file() or (Path(place) / "dataset_dict.json").is_file():
            dataset = _split_of(datasets.load_from_disk(place), split, place)
        else:
            dataset = datasets.load_dataset(place, split=split or "train")
    except (ValueError, OSError, KeyError, datasets.exceptions.DatasetNotFoundError) as error:
        raise InvalidInput(
            f"datasets:{place}, split {split or 'train'}: {error}", reason="DATASET_NOT_FOUND"
        ) from error
    return dataset, [Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def _split_of(saved: Any, split: str | None, place: str) -> Any:
    """A split of what `save_to_disk` wrote: splits by name, or one dataset, whose split it may name."""
    from datasets import DatasetDict

    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    wanted = split or ("train" if isinstance(saved, DatasetDict) else next(iter(splits)))
    if wanted not in splits:
        raise InvalidInput(
            f"datasets:{place} has no split {wanted}: it has {', '.join(splits)}", reason="DATASET_NOT_FOUND"
        )
    return splits[wanted]
