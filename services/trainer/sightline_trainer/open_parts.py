"""Open parts: third-party parts of a recipe, by `package.module:Name` or by the name of an entry point.

    reward: {terms: {"mycompany.rewards:brevity": {weight: 0.5}}}      # a function or a TermPart
    filters: {no_digits: {}}                                           # an entry point of the group sightline.filters

Naming one imports code, so the reader of a recipe decides what may be imported (`importing`). `sightline run` imports
the parts that the recipe names; a trainer service imports those that its operator listed (setting `parts`). Code that
only inspects a run imports nothing: there such a part is a `NotImported`, which keeps its settings and does no work.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

ALL: Final = ("*",)
"""Everything may be imported."""

_PLACE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
logger = logging.getLogger(__name__)

_allowed: ContextVar[Collection[str]] = ContextVar("sightline_parts", default=())


@contextmanager
def importing(names: Collection[str]) -> Iterator[None]:
    """Inside, recipes may import these parts: names as written in a recipe, `package.module:*` for all of a module, or
    `ALL`."""
    token = _allowed.set(names)
    try:
        yield
    finally:
        _allowed.reset(token)


def permitted(name: str, names: Collection[str]) -> bool:
    """Whether `names` lists a part."""
    return "*" in names or name in names or (":" in name and f"{name.partition(':')[0]}:*" in names)


def is_open(name: str, group: str) -> bool:
    """Whether a key of a recipe can be an open part: a place, or an entry point of the group. Nothing is imported."""
    return _PLACE.fullmatch(name) is not None or _entry_point(name, group) is not None


def imported(name: str, group: str) -> Any:
    """The object that an open part's name refers to, or None if it may not be imported here.

    Raises:
        ValueError: it does not exist, or importing it fails; the message says why.
    """
    return _import(name, group) if permitted(name, _allowed.get()) else None


def check_arguments(function: Any, *names: str) -> None:
    """Check that a function can be called with these arguments, by position.

    Raises:
        ValueError: it takes others, or the same names in another order.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C have none
        return
    wanted, named = f"it must take ({', '.join(names)}), by position", f"it takes {signature}"
    try:
        given = signature.bind(*names).arguments
    except TypeError:
        raise ValueError(f"{named}; {wanted}") from None
    if any(name in names and given[name] != name for name in given):
        raise ValueError(f"{named}; {wanted}, in this order")


class Failures:
    """Logs a part's first failure of each kind: a part that fails mostly fails for every prompt."""

    def __init__(self, part: str) -> None:
        self.part = part
        self._told: set[str] = set()

    def tell(self, kind: str, what: str, *, traceback: bool = False) -> None:
        """Log it, with the traceback of the current exception if asked for."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("%s %s", self.part, what, exc_info=traceback)


@cache
def _entry_point(name: str, group: str) -> EntryPoint | None:
    return next(iter(entry_points(group=group, name=name)), None)


@cache
def _import(name: str, group: str) -> Any:
    entry = _entry_point(name, group)
    place = entry.value if entry is not None else name
    module, _, attribute = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step)
    except (Exception, SystemExit) as error:  # an import runs its module, which may raise anything
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    return found
