"""Files: written aside, synced and renamed into place, so that what exists is whole."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside `path`, sync it and rename it into place. One that fails takes no room. Of
    several threads that write the same file, the last one wins."""
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
    """Bring a directory's names to disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: object) -> None:
    """Write `value` as a whole JSON file."""
    write_whole(path, lambda aside: aside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n"))


def read_json(path: Path) -> Any:
    """What a JSON file holds, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None
