"""Answers with a known number of errors, and their corrected forms: a judge rates them, an editor improves them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from sightline_playground.captions import ObjectMention, compose, mention
from sightline_playground.scenes import Scene
from sightline_playground.world import COLOURS, GRID, SHAPES, THINGS, Thing, stream

WRONG: Final = (0.4, 0.35, 0.25)
"""Chances of 0, 1 and 2 objects that are not in the picture."""
MISSING: Final = (0.55, 0.3, 0.15)
"""Chances of 0, 1 and 2 objects left out; at least one is named."""


@dataclass(frozen=True)
class FlawedAnswer:
    """An answer and its errors."""

    text: str
    improved: str
    """The same opening and phrases, with exactly the objects of the scene."""
    wrong: int
    """How many objects it names that are not in the scene."""
    missing: int
    """How many objects of the scene it does not name."""


def flawed(scene: Scene, rng: random.Random, wrong: int | None = None, missing: int | None = None) -> FlawedAnswer:
    """An answer about a scene with this many errors; None draws the number by `WRONG` or `MISSING`."""
    wrong = rng.choices(range(len(WRONG)), WRONG)[0] if wrong is None else wrong
    missing = rng.choices(range(len(MISSING)), MISSING)[0] if missing is None else missing
    missing = min(missing, len(scene.items) - 1)
    true = [mention(item, rng) for item in scene.items]
    left_out = set(rng.sample(range(len(true)), missing))
    named = [each for place, each in enumerate(true) if place not in left_out]
    for _ in range(wrong):
        spot = rng.randrange(len(named))
        taken = {each.thing for each in named} | set(scene.things)
        cell = None if rng.random() < 0.7 else rng.randrange(GRID * GRID)
        named.insert(spot + 1, ObjectMention(intruder(named[spot].thing, taken, rng), cell))
    style = rng.random()
    return FlawedAnswer(compose(named, stream("style", style)), compose(true, stream("style", style)), wrong, missing)


def intruder(beside: Thing, taken: set[Thing], rng: random.Random) -> Thing:
    """An object that is not among `taken`: often the companion of `beside`, or one of its colour or shape."""
    how = rng.random()
    if how < 0.5 and beside.companion not in taken:
        return beside.companion
    near = [Thing(colour, beside.shape) for colour in COLOURS] + [Thing(beside.colour, shape) for shape in SHAPES]
    pool = near if how < 0.75 else list(THINGS)
    return rng.choice([thing for thing in pool if thing not in taken])
