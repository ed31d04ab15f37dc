"""Kinds of errors that can be written into an answer."""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["add_object", "swap_object", "remove_object", "swap_attribute", "swap_relation"]

WORDS: Final[dict[Kind, str]] = {
    "add_object": "mention something that is not there but often stands beside what is",
    "swap_object": "put another, similar thing in the place of one that is there",
    "remove_object": "leave out something that matters",
    "swap_attribute": "change a colour, a number, a material or another property",
    "swap_relation": "change where something is or what it does to something else",
}
"""The instruction to a language model for each kind of error."""
