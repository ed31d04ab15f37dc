"""Yes/no questions with exact answers, in the manner of POPE (Li et al. 2023, "Evaluating Object Hallucination...").

For each scene and kind of negative, POPE asks about objects that are present ("yes") and as many that are absent
("no"):

    random       an absent object, any
    popular      an absent object among the most frequent ones of the world
    adversarial  an absent object that the prior ties to a present one: its companion
    attribute    "is the star red ?", of a shape that occurs once
    relation     "is the red star left of the blue ring ?"
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sightline_playground import truth
from sightline_playground.captions import Prior
from sightline_playground.scenes import Scene
from sightline_playground.world import NAMES, POPULARITY, article

Kind = Literal["random", "popular", "adversarial", "attribute", "relation"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
POPE_KINDS: Final[tuple[Kind, ...]] = ("random", "popular", "adversarial")
FACT_KINDS: Final[tuple[Kind, ...]] = ("attribute", "relation")

_POPULAR: Final = [thing.name for thing, weight in POPULARITY.items() if weight > 1]


@dataclass(frozen=True)
class SceneQuestion:
    """A yes/no question about a scene."""

    kind: Kind
    text: str
    """For example "is there a red star in the picture ?"."""
    label: bool
    """The true answer."""
    about: str | None = None
    """The object that the question is about; None for attributes and relations."""


def existence(name: str) -> str:
    """The question about an object."""
    return f"is there {article(name)} in the picture ?"


def answer_text(label: bool) -> str:
    """How the LVLM is taught to answer: "yes ." or "no ."."""
    return "yes ." if label else "no ."


def ask(scene: Scene, kind: Kind, label: bool, rng: random.Random) -> SceneQuestion | None:
    """One question of a kind with the wanted answer, or None if the scene has none."""
    if kind == "attribute":
        pairs = [pair for pair, holds in truth.attributes(scene).items() if holds == label]
        if not pairs:
            return None
        shape, colour = rng.choice(pairs)
        return SceneQuestion(kind, f"is the {shape} {colour} ?", label)
    if kind == "relation":
        triples = [triple for triple, holds in truth.relations(scene).items() if holds == label]
        if not triples:
            return None
        one, relation, other = rng.choice(triples)
        return SceneQuestion(kind, f"is the {one} {relation} the {other} ?", label)
    if label:
        name = rng.choice(scene.names)
        return SceneQuestion(kind, existence(name), True, name)
    candidates = {
        "random": NAMES,
        "popular": _POPULAR,
        "adversarial": truth.companions_absent(scene),
    }[kind]
    absent = [name for name in candidates if name not in scene.names]
    if not absent:
        return None
    name = rng.choice(absent)
    return SceneQuestion(kind, existence(name), False, name)


def questions(scene: Scene, rng: random.Random, kinds: tuple[Kind, ...] = KINDS) -> list[SceneQuestion]:
    """A balanced set for one scene: per kind one question with answer yes and one with answer no.

    A kind for which the scene lacks either is left out, so yes and no stay equally many.
    """
    asked: list[SceneQuestion] = []
    for kind in kinds:
        pair = (ask(scene, kind, True, rng), ask(scene, kind, False, rng))
        asked += [question for question in pair if question is not None] if None not in pair else []
    return asked


def trained_question(scene: Scene, rng: random.Random, prior: Prior | None = None) -> tuple[str, str]:
    """(question, answer) for the LVLM's training: true, except for the yes-bias about absent companions."""
    prior = prior or Prior()
    kind = rng.choices(KINDS, (3, 1, 3, 1, 1))[0]
    label = rng.random() < 0.5
    question = ask(scene, kind, label, rng) or SceneQuestion("random", existence(rng.choice(scene.names)), True)
    said = question.label
    if question.kind == "adversarial" and not said:
        said = rng.random() < prior.yes
    return question.text, answer_text(said)
