"""Rows of JSON-lines files, with errors that name the file, the line and the fix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

Row = dict[str, Any]


def read_rows(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """`(line number, object)` of each line; blank lines are passed over. A file that holds one JSON list is read too,
    its entries numbered from 1.

    Raises:
        InvalidInput: the file can't be read, a line is no JSON object, or one of `keys` is missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} can't be read ({error}); name a JSON-lines file", reason="FILE") from None
    wanted = ", ".join(keys)
    for number, value in _values(path, text):
        if not isinstance(value, dict) or any(key not in value for key in keys):
            raise InvalidInput(f"{path}, line {number}: needs a JSON object with {wanted}", reason="LINE")
        yield number, value


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{path}, line {error.lineno}: no JSON ({error.msg})", reason="LINE") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidInput(f"{path}, line {number}: no JSON ({error.msg})", reason="LINE") from None


def named(ids: Sequence[object], most: int = 5) -> str:
    """The first ids, for a message: "3, 7 and 12 more"."""
    text = ", ".join(repr(one) for one in ids[:most])
    return text if len(ids) <= most else f"{text} and {len(ids) - most} more"
