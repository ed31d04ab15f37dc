"""What the small world consists of: 6 colours x 6 shapes = 36 objects, and 9 places of a 3 x 3 grid.

An object is named "colour shape" ("red star"); a place is a cell number 0..8 in reading order (8 is bottom right).
Every object has one fixed *companion*, an object of another colour and shape, to which the language prior ties it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (235, 205, 30),
    "purple": (140, 55, 170),
    "orange": (240, 130, 25),
}
"""Colour name -> 8-bit RGB."""

SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle", "star", "cross", "ring")

PLACES: Final[tuple[str, ...]] = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
"""Words for cell 0..8."""

GRID: Final = 3
"""Cells per side."""


@dataclass(frozen=True, order=True)
class Thing:
    """One kind of object: a colour and a shape."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        """The name as captions write it, for example "red star"."""
        return f"{self.colour} {self.shape}"

    @property
    def companion(self) -> Thing:
        """The object that the language prior ties to this one: next colour, next shape but one."""
        colours = list(COLOURS)
        return Thing(
            colours[(colours.index(self.colour) + 1) % len(colours)],
            SHAPES[(SHAPES.index(self.shape) + 2) % len(SHAPES)],
        )


THINGS: Final[tuple[Thing, ...]] = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)
"""All 36 objects, colours outermost."""

NAMES: Final[tuple[str, ...]] = tuple(thing.name for thing in THINGS)

BY_NAME: Final[dict[str, Thing]] = {thing.name: thing for thing in THINGS}

POPULARITY: Final[dict[Thing, float]] = {
    thing: 2.0 if (2 * index + index // len(SHAPES)) % 7 == 0 else 1.0 for index, thing in enumerate(THINGS)
}
"""Relative frequency of each object in scenes: some are twice as common, so that "popular" has a meaning."""


def stream(*key: object) -> random.Random:
    """A random stream that depends on `key` only: the same numbers on every machine and in every process."""
    return random.Random("/".join(str(part) for part in key))  # noqa: S311 (pictures, not secrets)


def article(name: str) -> str:
    """`a` or `an` with the name: "a red star", "an orange ring"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
