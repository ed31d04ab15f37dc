"""Layers: merges the values of a file, the environment and flags, and records the origin of each.

Sections merge key by key, and a key that no layer names keeps the default of the field that holds the section. A table
of named entries is replaced as a whole by a mapping and edited by a dotted key; its default applies until it is
replaced.

    admission={max_queue: 9}       section: max_concurrent is kept
    dpo.loss={ipo: 1}              table: the only loss
    dpo.loss.sft=0.1               table: one more loss
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic_core import PydanticUndefined

from sightline_chassis.sections import Section, Table

Keys = tuple[str, ...]


class SettingsError(ValueError):
    """The settings cannot be used; the message is one paragraph for the person who wrote them."""


@dataclass(frozen=True)
class KeyShape:
    """The shape of a key: a section, a table whose entries all have one shape, or a value.

    Attributes:
        model: the class of a section, or of a table with known names.
        entries: the shape of every entry of a table with free names; otherwise None.
        optional: whether null is a value here.
        standing: the value before any layer names it.
    """

    model: type[Section] | None = None
    entries: KeyShape | None = None
    optional: bool = False
    standing: Any = None

    @property
    def is_table(self) -> bool:
        """Whether a mapping replaces all existing entries."""
        return self.entries is not None or (self.model is not None and issubclass(self.model, Table))

    @property
    def is_value(self) -> bool:
        """Whether it has no keys below it."""
        return self.entries is None and self.model is None

    def child(self, key: str) -> KeyShape:
        """The shape one key below; for an unknown key, that of a section without a default."""
        if self.entries is not None:
            return self.entries
        field = self.model.model_fields.get(key) if self.model is not None else None
        return KeyShape(model=Section) if field is None else _shape(field.annotation, _default(field))


def shape_of(model: type[Section]) -> KeyShape:
    """The shape of whole settings."""
    return KeyShape(model=model, standing={})


def _default(field: Any) -> Any:
    try:
        default = field.get_default(call_default_factory=True, validated_data={})
    except pydantic.ValidationError:  # a required section, such as the gateway's scorer
        return None
    if default is PydanticUndefined:
        return None
    # Defaults of the default's own class are left out: they are restored anyway.
    return default.model_dump(exclude_unset=True) if isinstance(default, pydantic.BaseModel) else default


def _shape(annotation: Any, standing: Any = None) -> KeyShape:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _shape(arguments[0], standing)
    if origin in (typing.Union, types.UnionType):
        found = next((one for each in arguments if not (one := _shape(each)).is_value), KeyShape())
        return KeyShape(found.model, found.entries, type(None) in arguments, standing)
    if origin in (dict, Mapping):
        return KeyShape(entries=_shape(arguments[1]), standing=standing)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return KeyShape(model=annotation, standing=standing)
    return KeyShape(standing=standing)


class Layers:
    """Merged values: `tree` is the result, without keys that keep their defaults."""

    def __init__(self, model: type[Section]) -> None:
        self.tree: dict[str, Any] = {}
        self._shape = shape_of(model)
        self._origins: dict[Keys, str] = {}

    def lay(self, keys: Keys, value: Any, origin: str) -> None:
        """Set `value` at `keys`, over the present value. Without keys: a mapping of everything.

        Raises:
            SettingsError: a key goes below a value.
        """
        if keys:
            self._lay(self._shape, self.tree, (), keys, value, origin)
        else:
            for key, inner in value.items():
                self._lay(self._shape, self.tree, (), (str(key),), inner, origin)

    def _lay(self, shape: KeyShape, tree: dict[str, Any], path: Keys, keys: Keys, value: Any, origin: str) -> None:
        key, rest = keys[0], keys[1:]
        inner, path = shape.child(key), (*path, key)
        if rest:
            self._lay(inner, self._opened(inner, tree, path, origin), path, rest, value, origin)
        elif value is None and not inner.is_value and not inner.optional and shape.entries is None:
            tree.pop(key, None)  # an empty section means its defaults
            self._forget(path)
        elif isinstance(value, dict) and not inner.is_value and not inner.is_table:
            merged = self._opened(inner, tree, path, origin)
            if not value:
                self._origins[path] = origin
            for name, further in value.items():
                self._lay(inner, merged, path, (str(name),), further, origin)
        else:
            if key in tree:
                self._forget(path)
            tree[key] = value
            self._record(path, value, origin)

    def _opened(self, shape: KeyShape, tree: dict[str, Any], path: Keys, origin: str) -> dict[str, Any]:
        """The mapping at `path`, which a key goes below."""
        known = tree.get(path[-1])
        if shape.is_value or not (known is None or isinstance(known, dict | bool)):
            raise SettingsError(f"{origin}: {path[-1][:100]} is a value, not a section")
        if not isinstance(
            known, dict
        ):  # true or false switches a part on or off; editing one of its keys switches it on
            if path[-1] in tree:
                self._forget(path)
            tree[path[-1]] = dict(shape.standing) if isinstance(shape.standing, Mapping) else {}
        return typing.cast(dict[str, Any], tree[path[-1]])

    def _forget(self, path: Keys) -> None:
        for known in [each for each in self._origins if each[: len(path)] == path]:
            del self._origins[known]

    def _record(self, path: Keys, value: Any, origin: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                self._record((*path, str(key)), inner, origin)
        else:
            self._origins[path] = origin

    def origin(self, keys: Keys) -> str | None:
        """The layer that set the value at `keys`, or a part of it; None if it is the default."""
        if keys in self._origins:
            return self._origins[keys]
        below = [origin for known, origin in self._origins.items() if known[: len(keys)] == keys]
        return below[-1] if below else None

    def layer_of(self, keys: Keys) -> str | None:
        """The layer to name for an error at `keys`: the one that set it, or the one that set the section around it."""
        return next((found for n in range(len(keys), 0, -1) if (found := self.origin(keys[:n]))), None)
