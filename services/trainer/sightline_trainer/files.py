"""Writes files under a temporary name, syncs and renames them, so that every existing file is complete."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.errors import DataCorrupted

_ONLY_ONCE = ("run.json", "recipe.yaml")
"""Files of a run that no later stage makes again."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it and rename it. A failed file is removed. If several
    threads write the same file, the last one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync a directory's names to disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: object) -> None:
    """Write `value` as a JSON file, atomically."""
    write_whole(path, lambda aside: aside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n"))


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no file.

    Raises:
        DataCorrupted: it is empty, cut off or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise damaged(path, error) from error


def read_table(path: Path, columns: list[str] | None = None) -> Any:
    """The pyarrow table of a Parquet file, or some of its columns.

    Raises:
        DataCorrupted: it is empty, cut off, not Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> DataCorrupted:
    """The error for a file that can no longer be read."""
    detail = next(iter(str(why).splitlines()), "empty")
    if path.name in _ONLY_ONCE:
        remedy = "restore it from a copy; a run does not make it again, so without a copy start a new run"
    else:
        remedy = "restore it from a copy, or delete it and resume the run, which makes it again if it can"
    return DataCorrupted(f"{path} is damaged ({detail}): {remedy}", reason="RUN_FILE_DAMAGED")
