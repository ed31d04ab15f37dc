"""The one reader for all suites' files: strict, with errors that name the file, the line and the fix.

It accepts JSON lines, one JSON list, and consecutive JSON values with any line breaks (as from `json.dump` in a loop,
`jq` and `cat`), in UTF-8 with or without a byte order mark, or in UTF-16 with one. It refuses ambiguous values: a
duplicate key in an object, a text that is null, a number or half of an emoji, an id that is null or a fraction.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

Row = dict[str, Any]

MOST_BYTES = 2 << 30
"""Maximum bytes of a file (COCO's largest has a quarter of it). Suites' files are read completely."""
_BETWEEN = re.compile(r"[\s\ufeff]*")


@dataclass(frozen=True)
class Line:
    """One object of a file. `place` is "line 3", or "entry 3" of a list."""

    path: Path
    place: str
    row: Mapping[str, Any]

    def fault(self, complaint: str) -> InvalidInput:
        """The error that names this line."""
        return InvalidInput(f"{self.path}, {self.place}: {complaint}", reason="LINE")

    def text(self, key: str) -> str:
        """The text under a key.

        Raises:
            InvalidInput: it is missing or not a text.
        """
        value = self.row.get(key)
        if not isinstance(value, str):
            raise self.fault(f"{key} is {_shown(value)}; wanted a text (an empty text is an answer, null is not)")
        if not encodable(value):
            raise self.fault(f"{key} holds half of a character (a lone surrogate); write it again from the whole text")
        return value

    def name(self, key: str) -> str:
        """The id under a key: 7, "7" and 7.0, as pandas writes it, are one.

        Raises:
            InvalidInput: it is missing or not an id.
        """
        value = self.row.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.fault(f"{key} is {_shown(value)}; wanted an id, a text or a whole number")
        if isinstance(value, str) and not encodable(value):
            raise self.fault(f"{key} holds half of a character (a lone surrogate)")
        return str(value)


def read_lines(path: Path, keys: Sequence[str]) -> Iterator[Line]:
    """The objects of a file, each with its place.

    Raises:
        InvalidInput: the file can't be read, holds something other than JSON objects, or one of `keys` is missing.
    """
    wanted = ", ".join(keys)
    for place, value in _values(path, _text(path, "name a JSON-lines file")):
        if not isinstance(value, dict):
            raise InvalidInput(f"{path}, {place}: needs a JSON object with {wanted}", reason="LINE")
        line = Line(path, place, value)
        if missing := [key for key in keys if key not in value]:
            raise line.fault(f"needs a JSON object with {wanted}; {', '.join(missing)} not among {_keys(value)}")
        yield line


def read_value(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        InvalidInput: it can't be read, or holds something else; `reason` is FILE.
    """
    try:
        text = _text(path, "name a JSON file")
        return _DECODER.decode(text.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not a readable JSON file ({error})", reason="FILE") from None


def encodable(text: str) -> bool:
    """Whether a text has no half characters, such as half of an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def named(ids: Sequence[object], most: int = 5) -> str:
    """The first ids, for a message: "3, 7 and 12 more"."""
    text = ", ".join(repr(one) for one in ids[:most])
    return text if len(ids) <= most else f"{text} and {len(ids) - most} more"


def _text(path: Path, fix: str) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidInput(f"{path} is larger than {MOST_BYTES >> 30} GiB; {fix} of one suite", reason="FILE")
        raw = path.read_bytes()
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} can't be read ({error}); {fix}", reason="FILE") from None


def _values(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Values with their places. If the first is a list, its entries are meant, and all others must be lists too."""
    at, line, entry, lists = 0, 1, 0, False
    while (start := _skipped(text, at)) < len(text):
        line += text.count("\n", at, start)
        try:
            value, at = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            where = "" if error.lineno == line else f" in line {error.lineno}"
            raise InvalidInput(f"{path}, line {line}: not JSON ({error.msg}{where})", reason="LINE") from None
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path}, line {line}: not JSON ({error})", reason="LINE") from None
        lists = lists or (isinstance(value, list) and not entry)
        if lists and isinstance(value, list):
            for one in value:
                entry += 1
                yield f"entry {entry}", one
        else:
            entry += 1
            yield f"line {line}", value
        line += text.count("\n", start, at)


def _skipped(text: str, at: int) -> int:
    """The position after white space and byte order marks, which concatenated files have in the middle."""
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


def _once(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = sorted({key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1})
        raise ValueError(f"{named(twice)} appears twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _keys(row: Mapping[str, Any]) -> str:
    return named(list(row)) if row else "none"


def _shown(value: object) -> str:
    return "missing or null" if value is None else repr(value) if len(repr(value)) < 40 else f"a {type(value).__name__}"
