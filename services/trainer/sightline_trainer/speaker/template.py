"""Templates: questions with {fields} that are filled from the candidate and its prompt."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

_FIELD: Final = re.compile(r"\{([^{}]*)\}")


def check_template(template: str, fields: Collection[str]) -> None:
    """Check that a template names only known fields.

    Raises:
        ValueError: it names another one.
    """
    if unknown := sorted(set(_FIELD.findall(template)) - set(fields)):
        raise ValueError(f"the template names {', '.join(unknown)}; known are {', '.join(fields)}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled in, in one pass, so that braces in values are kept."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)
