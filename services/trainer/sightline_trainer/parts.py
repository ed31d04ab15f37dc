"""Part: one exchangeable piece of a method, with a registry name and settings.

A recipe names parts under `candidates`, `reward.terms`, `filters` and `pairing`:

    candidates:
      policy: {paraphrases: ["describe the picture ."]}
      reference: {}              # with its defaults
      injected: false            # left out, even if an included file has it

One part may occur several times, each under a name of the recipe's own:

    reward: {terms: {right: {part: ask, ...}, whole: {part: ask, ...}}}

A new part of ours is a module with a `Part` and a line in its package's registry; a third-party part is named by its
location or entry point (see `open_parts`). Other names are refused, with a list of the known ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import Field, create_model, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from sightline.errors import PreconditionFailed
from sightline_chassis.settings import Section, Table

from sightline_trainer.open_parts import imported, is_open

P = TypeVar("P", bound="Part")


class Part(Section):
    """Settings of one part; its code is in the same module."""


class Again(Part):
    """A part of ours under a name of the recipe's own."""


class NotImported(Part):
    """An open part that may not be imported here, with its settings unchanged."""

    model_config = pydantic.ConfigDict(extra="allow")


@dataclass(frozen=True)
class Kind:
    """One kind of parts.

    Attributes:
        group: group of the entry points.
        base: what a part must be a subclass of.
        methods: a part must define one of these.
        of_function: makes a part from a plain function, if the kind supports that.
    """

    group: str
    base: type[Part]
    methods: tuple[str, ...] = ()
    of_function: Callable[[Callable[..., Any]], type[Part]] | None = None

    def part(self, name: str) -> type[Part] | None:
        """The class of an open part; None if it may not be imported here.

        Raises:
            ValueError: it cannot be imported, or is not a part of this kind.
        """
        found = imported(name, self.group)
        if found is None:
            return None
        if isinstance(found, type) and issubclass(found, self.base):
            if fault := self._fault(found):
                raise ValueError(f"{name} {fault}")
            return found
        if self.of_function is not None and callable(found) and not isinstance(found, type):
            try:
                return self.of_function(found)
            except ValueError as error:
                raise ValueError(f"{name} cannot be used: {error}") from None
        wanted = f"a {self.base.__name__}" + (" or a function" if self.of_function else "")
        raise ValueError(f"{name} is {found!r:.80}, and must be {wanted}")

    def _fault(self, part: type[Part]) -> str | None:
        """Why a class cannot work, or None."""
        if self.methods and all(getattr(part, each) is getattr(self.base, each) for each in self.methods):
            return f"must define {' or '.join(self.methods)}"
        if getattr(part, "writes", None) == ():
            return "must name the sources of its candidates in `writes`"
        return None


class Parts(Table):
    """Parts of one kind: each registry name is a field, None if the recipe leaves the part out; third-party parts are
    extra fields."""

    model_config = pydantic.ConfigDict(extra="allow")
    kind: ClassVar[Kind]
    registry: ClassVar[Mapping[str, type[Part]]]

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        parts = {name: {} if part in (None, True) else part for name, part in value.items() if part is not False}
        faults: list[InitErrorDetails] = []
        for name in [name for name in parts if name not in cls.model_fields]:
            settings = parts[name]
            try:
                parts[name] = cls._open(name, settings)
            except pydantic.ValidationError as error:
                faults += _below(name, error, cls._known(name, settings))
            except ValueError as error:
                faults.append(_fault(name, str(error), settings))
        if faults:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, faults)
        return parts

    @classmethod
    def _open(cls, name: str, settings: Any) -> Part:
        if isinstance(settings, Part):
            return settings
        made = cls._class(name, settings)
        if made is not None:
            return made.model_validate(settings)
        if "." in name:
            raise ValueError("it is unknown; a part of your own is named package.module:Name")
        raise pydantic.ValidationError.from_exception_data(
            cls.__name__, [InitErrorDetails(type="extra_forbidden", loc=(), input=settings)]
        )

    @classmethod
    def _class(cls, name: str, settings: Any) -> type[Part] | None:
        """The class of a part that is not in the registry; None if nothing has this name."""
        again = settings.get("part") if isinstance(settings, dict) else None
        if isinstance(again, str) and again in cls.registry:
            return _again(cls.registry[again], again)
        return (cls.kind.part(name) or NotImported) if is_open(name, cls.kind.group) else None

    @classmethod
    def _known(cls, name: str, settings: Any) -> list[str]:
        """The keys of such a part."""
        made = cls._class(name, settings)
        return [] if made is None else list(made.model_fields)

    @model_serializer(mode="wrap")
    def _present(self, handler: Any) -> dict[str, Any]:
        dumped = handler(self)
        return {name: dumped[name] for name in self.chosen()}

    def chosen(self) -> dict[str, Any]:
        """The recipe's parts by name: first those of the registry, in its order, then the others."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: part for name, part in named.items() if part is not None} | (self.__pydantic_extra__ or {})

    def opened(self) -> dict[str, Any]:
        """The third-party parts."""
        extra: dict[str, Any] = self.__pydantic_extra__ or {}
        return {name: part for name, part in extra.items() if not isinstance(part, Again)}

    def usable(self) -> None:
        """Check that all parts are usable.

        Raises:
            PreconditionFailed: a part was not imported.
        """
        for name, part in self.opened().items():
            if isinstance(part, NotImported):
                raise PreconditionFailed(
                    f"{name} is a third-party part that was not imported: the person who runs the recipe must allow it",
                    reason="PART_NOT_IMPORTED",
                )


@cache
def _again(part: type[Part], name: str) -> type[Part]:
    """A part under another name, which keeps its owner."""
    said: Any = (Literal[name], Field(..., description="The part to use under this name."))
    return create_model(part.__name__, __base__=(part, Again), __module__=__name__, part=said)


def _below(name: str, error: pydantic.ValidationError, known: Sequence[str]) -> Iterator[InitErrorDetails]:
    """The errors of a part's settings, with the part's name before their keys.

    Args:
        known: the part's keys.
    """
    for one in error.errors(include_url=False):
        loc = (name, *one["loc"])
        if one["type"] == "extra_forbidden" and len(one["loc"]) == 1:
            close = difflib.get_close_matches(str(one["loc"][0]), known, n=1)
            said = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'none'}"
            yield _fault(loc, f"unknown key ({said})", one["input"])
        elif one["type"] == "extra_forbidden":
            yield InitErrorDetails(type="extra_forbidden", loc=loc, input=one["input"])
        else:
            yield _fault(loc, one["msg"].removeprefix("Value error, "), one["input"])


def _fault(loc: str | tuple[int | str, ...], message: str, value: Any) -> InitErrorDetails:
    escaped = message.replace("{", "(").replace("}", ")")  # pydantic substitutes braces
    loc = loc if isinstance(loc, tuple) else (loc,)
    return InitErrorDetails(type=PydanticCustomError("part_refused", escaped), loc=loc, input=value)


def parts_of(name: str, registry: Mapping[str, type[P]], kind: Kind) -> type[Parts]:
    """The section whose fields are a registry's names."""
    fields: dict[str, Any] = {
        key: (part | None, Field(None, description=(part.__doc__ or "").split("\n")[0]))
        for key, part in registry.items()
    }
    made = create_model(name, __base__=Parts, __module__=__name__, **fields)
    made.kind, made.registry = kind, registry
    return made
