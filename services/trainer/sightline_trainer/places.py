"""The paths in a recipe, in a form that stays valid wherever the run is moved and read from.

In a run's recipe.yaml, a path inside the run is `run:data/align` (relative to the run), and one outside is absolute.
Values that are not paths, such as names on a hub, are unchanged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

RUN = "run:"
_KEYS = (
    ("model",),
    ("data", "train"),
    ("data", "test"),
    ("data", "pairs"),
    ("reward", "source"),
    ("reward", "pretrained"),
)
_SCHEMES = ("llava", "datasets", "local-dir")


def located(tree: dict[str, Any], root: Path) -> dict[str, Any]:
    """The tree of a recipe with `run:` paths resolved below `root`, the run's directory."""
    return _mapped(tree, lambda place: str(root / place.removeprefix(RUN)) if place.startswith(RUN) else place)


def portable(tree: dict[str, Any], root: Path) -> dict[str, Any]:
    """The tree of a recipe as it is written into the run's directory `root`."""

    def carried(place: str) -> str:
        path = Path(place).expanduser()
        if place.startswith(RUN) or not path.exists():
            return place
        if path.resolve().is_relative_to(root.resolve()):
            return RUN + str(path.resolve().relative_to(root.resolve()))
        return os.path.abspath(path)

    return _mapped(tree, carried)


def canonical(tree: dict[str, Any], root: Path) -> dict[str, Any]:
    """The tree with one spelling for each path, to compare recipes."""

    def real(place: str) -> str:
        path = Path(place).expanduser()
        return str(path.resolve()) if path.exists() else place

    return _mapped(located(tree, root), real)


def _mapped(tree: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for *sections, key in _KEYS:
        holder = tree
        for section in sections:
            holder = holder.get(section) or {}
        value = holder.get(key)
        if isinstance(value, str) and value and _is_place((*sections, key), value):
            holder[key] = _changed(value, change)
    launch = (tree.get("dpo") or {}).get("launch")
    if isinstance(launch, list):  # files among a launcher's arguments, such as recipes/accelerate/fsdp.yaml
        tree["dpo"]["launch"] = [change(word) if os.sep in str(word) else word for word in launch]
    return tree


def _is_place(keys: tuple[str, ...], value: str) -> bool:
    """Names of open_clip models and tags are not paths, even if a local file has that name."""
    if keys == ("reward", "source"):
        return value.startswith("local-dir:")
    return keys != ("reward", "pretrained") or os.sep in value


def split_query(rest: str, change: Callable[[str], str] = str) -> tuple[str, str, str]:
    """(place, "?" or "", query): the longest place that exists, also one with `?` in its name; else up to the first
    `?`."""
    marks = [at for at, letter in enumerate(rest) if letter == "?"]
    for at in [len(rest), *reversed(marks)] if marks else []:
        place = rest[:at]
        if place and any(os.path.lexists(os.path.expanduser(each)) for each in (place, change(place))):
            return place, rest[at : at + 1], rest[at + 1 :]
    return rest.partition("?")


def _changed(reference: str, change: Callable[[str], str]) -> str:
    scheme, colon, rest = reference.partition(":")
    if not colon or scheme not in _SCHEMES:
        scheme, colon, rest = "", "", reference
    place, mark, query = split_query(rest, change)
    query = re.sub(
        r"(?<![^&])images=([^&]*)",
        lambda found: f"images={quote(change(unquote(found[1].replace('+', ' '))), safe='/:')}",
        query,
    )
    return f"{scheme}{colon}{change(place)}{mark}{query}"
