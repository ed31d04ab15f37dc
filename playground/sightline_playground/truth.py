"""Truth tables: which objects, attributes and relations hold in a scene, computed exactly from the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sightline_playground.scenes import PlacedObject, Scene
from sightline_playground.world import BY_NAME, COLOURS, NAMES, SHAPES

RELATIONS: Final[dict[str, Callable[[PlacedObject, PlacedObject], bool]]] = {
    "left of": lambda one, other: one.column < other.column,
    "right of": lambda one, other: one.column > other.column,
    "above": lambda one, other: one.row < other.row,
    "below": lambda one, other: one.row > other.row,
}
"""Relation -> whether it holds between two items. By rows and columns of the grid; jitter stays within a cell."""


def objects(scene: Scene) -> dict[str, bool]:
    """Every object's name -> is it in the scene? (36 entries)"""
    present = set(scene.names)
    return {name: name in present for name in NAMES}


def attributes(scene: Scene) -> dict[tuple[str, str], bool]:
    """(shape, colour) -> has the scene's only such shape this colour?

    Only shapes that occur exactly once have entries (6 each): of two stars "the star" would name neither.
    """
    shapes = [thing.shape for thing in scene.things]
    colour_of = {thing.shape: thing.colour for thing in scene.things}
    return {
        (shape, colour): colour_of[shape] == colour
        for shape in SHAPES
        if shapes.count(shape) == 1
        for colour in COLOURS
    }


def relations(scene: Scene) -> dict[tuple[str, str, str], bool]:
    """(name, relation, other name) -> does it hold? For each ordered pair of different objects of the scene."""
    return {
        (one.thing.name, relation, other.thing.name): holds(one, other)
        for one in scene.items
        for other in scene.items
        if one is not other
        for relation, holds in RELATIONS.items()
    }


def companions_absent(scene: Scene) -> list[str]:
    """Names of the companions of the scene's objects that are not there, in reading order of those objects."""
    names: list[str] = []
    for thing in scene.things:
        companion = thing.companion
        if companion not in scene.things and companion.name not in names:
            names.append(companion.name)
    return names


def describe(name: str) -> tuple[str, str]:
    """(colour, shape) of an object's name.

    Raises:
        KeyError: for a name that is not an object of this world.
    """
    thing = BY_NAME[name]
    return thing.colour, thing.shape
