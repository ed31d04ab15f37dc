"""False captions for training the scorer: the truth with one object added, left out or changed (hard negatives)."""

from __future__ import annotations

import random
from typing import Final, Literal, get_args

from sightline_playground.captions import SHORT, ObjectMention, compose, mention
from sightline_playground.scenes import Scene
from sightline_playground.world import COLOURS, GRID, SHAPES, THINGS, Thing, stream

Falsehood = Literal["added", "dropped", "changed"]

FALSEHOODS: Final[tuple[Falsehood, ...]] = get_args(Falsehood)


def contrast(scene: Scene, rng: random.Random, noise: float = 0.0) -> list[str]:
    """[true, one per FALSEHOODS]: captions of one scene that share opening and (nearly) joints.

    With chance `noise` the "true" one has a falsehood itself, as captions from the web do; the false ones are then
    made from that, and one of them may even be the truth.
    """
    mentions = [mention(item, rng) for item in scene.items]
    if rng.random() < noise:
        mentions = falsify(scene, mentions, rng.choice(FALSEHOODS), rng)
    style = rng.random()
    variants = [mentions, *(falsify(scene, mentions, kind, rng) for kind in FALSEHOODS)]
    return [compose(variant, stream("style", style)) for variant in variants]


def falsify(scene: Scene, mentions: list[ObjectMention], kind: Falsehood, rng: random.Random) -> list[ObjectMention]:
    """The mentions with one falsehood; a scene of one object can't have one dropped, so one is changed instead."""
    spot = rng.randrange(len(mentions))
    if kind == "added":
        extra = _absent(scene, mentions[spot].thing, rng)
        cell = None if rng.random() < 0.7 else rng.randrange(GRID * GRID)
        return [*mentions[: spot + 1], ObjectMention(extra, cell), *mentions[spot + 1 :]]
    if kind == "dropped" and len(mentions) > 1:
        return mentions[:spot] + mentions[spot + 1 :]
    return [*mentions[:spot], _changed(scene, mentions[spot], rng), *mentions[spot + 1 :]]


def _absent(scene: Scene, beside: Thing, rng: random.Random) -> Thing:
    """An object that is not in the scene; half the time the companion of `beside`, if that is absent."""
    if beside.companion not in scene.things and rng.random() < 0.5:
        return beside.companion
    return rng.choice([thing for thing in THINGS if thing not in scene.things])


def _changed(scene: Scene, old: ObjectMention, rng: random.Random) -> ObjectMention:
    """Another colour, another shape, another object or another place."""
    if old.cell is not None and rng.random() < SHORT:
        return ObjectMention(old.thing, rng.choice([cell for cell in range(GRID * GRID) if cell != old.cell]))
    near = [Thing(colour, old.thing.shape) for colour in COLOURS] + [Thing(old.thing.colour, shape) for shape in SHAPES]
    pool = near if rng.random() < 0.7 else list(THINGS)
    return ObjectMention(rng.choice([thing for thing in pool if thing not in scene.things]), old.cell)
