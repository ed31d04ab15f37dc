"""Scenes: 1-4 distinct objects in distinct cells, and the split that each scene belongs to.

**Splits are disjoint by construction.** A scene's *content* is the set of its (object, cell) pairs; jitter and
background do not count. `split_of` maps the SHA-256 of the sorted content to a number 0..99; that number alone decides
the split, so no content can be in two splits, whatever seed, count or version of the sampler drew it. A pixel-wise
variant of a test scene (another jitter) is a test scene too.

    train       0..69   the tiny CLIP and the tiny LVLM learn from these
    align      70..79   prompts of the alignment loop (training data, but new to the base model)
    validation 80..89   choosing hyperparameters
    test       90..99   held-out: every number of the model card and of an evaluation
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sightline_playground.world import GRID, POPULARITY, THINGS, Thing, stream

Split = Literal["train", "align", "validation", "test"]

SPLITS: Final[tuple[Split, ...]] = get_args(Split)

_BOUNDS: Final[dict[Split, range]] = {
    "train": range(70),
    "align": range(70, 80),
    "validation": range(80, 90),
    "test": range(90, 100),
}

COUNT_WEIGHTS: Final[dict[int, float]] = {1: 0.1, 2: 0.3, 3: 0.35, 4: 0.25}
"""Share of scenes by number of objects (before the split decides which are kept)."""

COMPANY: Final = 0.15
"""Chance that a next object is drawn as the companion of a present one, so that the prior is partly true."""

JITTER: Final = 2
"""Objects are off their cell's centre by -2..2 pixels in x and in y."""


@dataclass(frozen=True, order=True)
class PlacedObject:
    """An object in its place."""

    cell: int
    """0..8 in reading order."""
    thing: Thing
    dx: int = 0
    """Jitter in pixels, positive to the right."""
    dy: int = 0
    """Jitter in pixels, positive downwards."""

    @property
    def row(self) -> int:
        """0 (top) .. 2 (bottom)."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """0 (left) .. 2 (right)."""
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """What is in one picture."""

    items: tuple[PlacedObject, ...]
    """In reading order (by cell)."""
    shade: int = 245
    """Grey value of the background, 0..255."""

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects in reading order."""
        return tuple(item.thing for item in self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' names in reading order."""
        return tuple(item.thing.name for item in self.items)

    @property
    def content(self) -> str:
        """The content that decides the split, for example "0:red star|4:blue ring"."""
        return "|".join(f"{item.cell}:{item.thing.name}" for item in self.items)


def bucket_of(scene: Scene) -> int:
    """0..99, from the SHA-256 of the scene's content."""
    return int.from_bytes(hashlib.sha256(scene.content.encode()).digest()[:8], "big") % 100


def split_of(scene: Scene) -> Split:
    """The split that this scene belongs to."""
    bucket = bucket_of(scene)
    return next(split for split in SPLITS if bucket in _BOUNDS[split])


def any_scene(rng: random.Random) -> Scene:
    """A scene of any split."""
    count = rng.choices(list(COUNT_WEIGHTS), list(COUNT_WEIGHTS.values()))[0]
    things: list[Thing] = []
    while len(things) < count:
        if things and rng.random() < COMPANY:
            thing = rng.choice(things).companion
        else:
            thing = rng.choices(THINGS, list(POPULARITY.values()))[0]
        if thing not in things:
            things.append(thing)
    cells = rng.sample(range(GRID * GRID), count)
    items = [
        PlacedObject(cell, thing, rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER))
        for cell, thing in zip(cells, things, strict=True)
    ]
    return Scene(tuple(sorted(items)), shade=rng.randint(225, 255))


def scenes(split: Split, count: int, seed: int = 0) -> list[Scene]:
    """`count` different scenes of a split; the first ones do not depend on `count`.

    Raises:
        ValueError: for a split that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; known are {', '.join(SPLITS)}")
    found: dict[Scene, None] = {}
    for scene in _endless(split, seed):
        if len(found) >= count:
            break
        found.setdefault(scene)
    return list(found)


def _endless(split: Split, seed: int) -> Iterator[Scene]:
    rng = stream("scenes", split, seed)
    while True:
        scene = any_scene(rng)
        if split_of(scene) == split:
            yield scene
