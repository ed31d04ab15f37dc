"""Part: one exchangeable piece of a method, with a registry name and settings.

A recipe names parts under `candidates`, `reward.terms`, `filters` and `pairing`:

    candidates:
      policy: {paraphrases: ["describe the picture ."]}
      reference: {}              # with its defaults
      injected: false            # left out, whatever a file below said

A new part is a module with a `Part` in it and a line in its package's registry. Names that no registry has are refused,
with those that there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import Field, create_model, model_serializer, model_validator
from sightline_chassis.settings import Section, Table

P = TypeVar("P", bound="Part")


class Part(Section):
    """Settings of one part; its code stands beside them."""


class Parts(Table):
    """Parts of one kind: each registry name is a field, None where the recipe leaves the part out."""

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {} if part in (None, True) else part for name, part in value.items() if part is not False}

    @model_serializer(mode="wrap")
    def _present(self, handler: Any) -> dict[str, Any]:
        return {name: part for name, part in handler(self).items() if part is not None}

    def chosen(self) -> dict[str, Any]:
        """The parts that the recipe has, by name, in the registry's order."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: part for name, part in named.items() if part is not None}


def parts_of(name: str, registry: Mapping[str, type[P]]) -> type[Parts]:
    """The section whose fields are a registry's names."""
    fields: dict[str, Any] = {
        key: (part | None, Field(None, description=(part.__doc__ or "").split("\n")[0]))
        for key, part in registry.items()
    }
    return create_model(name, __base__=Parts, __module__=__name__, **fields)
