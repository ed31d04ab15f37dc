"""Captions: true ones, and those of the LVLM's training, which follow a language prior.

A caption names objects in reading order, joined by "and" or by a new sentence:

    there is a red star at the top left and a blue ring in the middle .
    i see a red star at the top left . there is a blue ring in the middle .

A mention is *long* (with its place, 6-7 words) or *short* (3 words). Some short mentions are true; a companion that is
not in the picture is always mentioned in the short form, right after its object. So a hallucination is a small part of
a caption's length, and no word reveals it: only the picture does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sightline_playground.scenes import PlacedObject, Scene
from sightline_playground.world import BY_NAME, COLOURS, PLACES, SHAPES, Thing, article, stream

PROMPTS: Final[tuple[str, ...]] = (
    "describe the picture .",
    "what is in the picture ?",
    "what do you see ?",
    "describe what you see .",
    "tell me what is in the picture .",
    "which objects are in the picture ?",
    "write a caption for the picture .",
)
"""Paraphrases of the one request that captions answer."""

OPENINGS: Final[tuple[str, ...]] = ("there is", "i see", "the picture shows")
NEW_SENTENCE: Final = 0.25
"""Chance that the next object begins a new sentence."""
SHORT: Final = 0.15
"""Chance that a true object is mentioned without its place."""


@dataclass(frozen=True)
class ObjectMention:
    """One object as a caption names it."""

    thing: Thing
    cell: int | None = None
    """Its place 0..8, or None for the short form."""

    @property
    def text(self) -> str:
        """For example "a red star at the top left"; or, short, "a red star"."""
        return article(self.thing.name) + ("" if self.cell is None else f" {PLACES[self.cell]}")


@dataclass(frozen=True)
class Prior:
    """Probabilities of errors in the LVLM's training captions."""

    companion: float = 0.25
    """Probability that an absent companion of an object is named."""
    omission: float = 0.03
    """Probability that an object is left out (never the only one)."""
    yes: float = 0.65
    """Probability that a question about an absent companion is answered "yes" in training."""


def mention(item: PlacedObject, rng: random.Random) -> ObjectMention:
    """An item's mention, long or (with chance SHORT) short."""
    return ObjectMention(item.thing, None if rng.random() < SHORT else item.cell)


def compose(mentions: Sequence[ObjectMention], rng: random.Random) -> str:
    """The caption that names these in order; `rng` chooses the opening and the joints.

    Short mentions always follow by "and"; only a long one can begin a new sentence.
    """
    words = [rng.choice(OPENINGS)]
    for index, each in enumerate(mentions):
        if index:
            words.append(". there is" if each.cell is not None and rng.random() < NEW_SENTENCE else "and")
        words.append(each.text)
    return " ".join([*words, "."])


def plain_caption(scene: Scene) -> str:
    """The reference: every object with its place, in one sentence, the same words every time."""
    return " ".join(["there is", " and ".join(ObjectMention(i.thing, i.cell).text for i in scene.items), "."])


def claiming(scene: Scene, name: str, there: bool) -> str:
    """The reference if an object were present or absent: "... and a red star ." """
    mentions = [ObjectMention(item.thing, item.cell) for item in scene.items if there or item.thing.name != name]
    if there and name not in scene.names:
        mentions.append(ObjectMention(BY_NAME[name]))
    if not mentions:
        return f"there is no {name} ."
    return " ".join(["there is", " and ".join(mention.text for mention in mentions), "."])


def true_caption(scene: Scene, rng: random.Random) -> str:
    """A caption that names every object of the scene and no other."""
    return compose([mention(item, rng) for item in scene.items], rng)


def trained_caption(scene: Scene, rng: random.Random, prior: Prior | None = None) -> str:
    """A training caption of the LVLM: the truth, distorted by the prior."""
    prior = prior or Prior()
    present = set(scene.things)
    mentions: list[ObjectMention] = []
    for item in scene.items:
        if len(scene.items) > 1 and rng.random() < prior.omission:
            continue
        mentions.append(mention(item, rng))
        companion = item.thing.companion
        if companion not in present and rng.random() < prior.companion:
            mentions.append(ObjectMention(companion))
    return compose(mentions or [mention(scene.items[0], rng)], rng)


def with_companion(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """(true caption, the same with one absent companion added): what a scorer must tell apart.

    Both have the same opening and joints; the companion is short and follows its object.

    Raises:
        ValueError: if every companion of the scene is really there.
    """
    mentions = [mention(item, rng) for item in scene.items]
    spots = [n for n, item in enumerate(scene.items) if item.thing.companion not in scene.things]
    if not spots:
        raise ValueError("every companion is in the picture")
    spot = rng.choice(spots)
    added = ObjectMention(scene.items[spot].thing.companion)
    style = rng.random()
    return (
        compose(mentions, stream("style", style)),
        _insert(compose(mentions, stream("style", style)), mentions[spot].text, f"and {added.text}"),
    )


def without_one(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """(true caption, the same with one object left out); needs two objects or more."""
    mentions = [mention(item, rng) for item in scene.items]
    spot = rng.randrange(len(mentions))
    style = rng.random()
    rest = [each for n, each in enumerate(mentions) if n != spot]
    return compose(mentions, stream("style", style)), compose(rest, stream(style))


def _insert(caption: str, after: str, addition: str) -> str:
    position = caption.index(after) + len(after)
    return f"{caption[:position]} {addition}{caption[position:]}"


_OBJECT: Final = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def mentioned(text: str) -> list[str]:
    """The names of the objects that a text mentions, in order, repetitions kept."""
    return [match.group(0) for match in _OBJECT.finditer(text.lower())]
