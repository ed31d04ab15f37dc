"""The four skills of the skilled LVLM: it rates answers, improves them, asks questions, and answers yes or no.

The prompts are those in the recipes' commands for real LVLMs, so a command can name either model. The scene alone
decides the right reply:

    rate      "... How helpful is the answer, from 1 to 5?"           a mark, from what is wrong and what is missing
    improve   "Here is an image and its description: ... Improve ..."  the answer without its errors, in its own style
    ask       "Ask a question about the picture."                      a question about what is in the picture
    answer    "... Is this true of the picture? ..."                   yes or no, without the plain LVLM's bias to yes

It also describes the picture: with the language prior after a plain request, without it after a prompt that names the
objects (as MARINE's does).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final, Literal, get_args

from sightline_playground import truth
from sightline_playground.captions import PROMPTS, ObjectMention, Prior, compose, mention, trained_caption, true_caption
from sightline_playground.flaws import FlawedAnswer, flawed
from sightline_playground.questions import KINDS, Kind, SceneQuestion, answer_text, ask, existence
from sightline_playground.scenes import Scene
from sightline_playground.tokens import words
from sightline_playground.world import GRID, NAMES

Lesson = Literal["help", "faith", "ethics", "facts", "agree", "improve", "ask", "question", "claim", "describe", "told"]

LESSONS: Final[tuple[Lesson, ...]] = get_args(Lesson)
"""What is taught: ratings by aspect, improvements, questions to ask, two forms of questions to answer, captions."""

RATINGS: Final[dict[str, tuple[str, Callable[[FlawedAnswer], int]]]] = {
    "help": (
        "Question: {question}\nAnswer: {answer}\nHow helpful is the answer, from 1 to 5?",
        lambda given: 5 - given.wrong - given.missing,
    ),
    "faith": (
        "Answer: {answer}\nHow faithful is it to the picture, from 1 to 5?",
        lambda given: 5 - 2 * given.wrong,
    ),
    "ethics": ("Answer: {answer}\nHow free of harm is it, from 1 to 5?", lambda given: 5),
    "facts": (
        "Facts: {objects}. {reference}\nQuestion: {question}\nAnswer: {answer}\n"
        "How far do the facts bear the answer out, from 1 to 5?",
        lambda given: 5 - 2 * given.wrong,
    ),
    "agree": (
        "Question: {question}\nReference: {reference}\nAnswer: {answer}\n"
        "How well does the answer agree with the reference, from 1 to 5?",
        lambda given: 5 - given.wrong - given.missing,
    ),
}
"""Aspect -> (the judge's prompt, the mark before its lower bound of 1). Three are VLFeedback's, then Fact-RLHF's and
OViP's."""
IMPROVE: Final = (
    "Here is an image and its description: {caption} Improve this answer to the question {question}: {answer}"
)
"""SENA's."""
ASK: Final = "Ask a question about the picture."
TRUE: Final = "{piece} Is this true of the picture? Please answer yes or no."
"""RLAIF-V's, for a claim or a sentence."""
THERE: Final = "is there a {object} ?"
"""RLAIF-V's, for an object."""
TOLD: Final = "there is a {objects} . {question}"
"""MARINE's."""
_ASKED: Final[dict[Kind, int]] = {"attribute": 2, "relation": 2, "random": 1}
_TEMPLATES: Final = (*(prompt for prompt, _ in RATINGS.values()), IMPROVE, ASK, TRUE, THERE, TOLD)


def extra_words() -> list[str]:
    """The tokens of the templates that the plain LVLM's tokenizer does not know, and the marks 1 to 5, sorted."""
    texts = [re.sub(r"\{\w+\}", end, template) for template in _TEMPLATES for end in (" ring ", "?", ".", "ring")]
    found = {token for text in texts for token in re.findall(r"\w+|[^\w\s]+", text.lower())}
    return sorted((found | set("12345")) - set(words()))


def lesson(kind: Lesson, scene: Scene, rng: random.Random, prior: Prior) -> tuple[str, str]:
    """(prompt, reply) of one lesson on a scene."""
    if kind in RATINGS:
        given = flawed(scene, rng)
        return rating_prompt(kind, given, scene, rng), f"{mark(kind, given)} ."
    if kind == "improve":
        given = flawed(scene, rng)
        return improve_prompt(given, scene, rng, prior), given.improved
    if kind == "ask":
        return ASK, asked(scene, rng).text
    if kind == "question":
        text, label = question(scene, rng)
        return text, answer_text(label)
    if kind == "claim":
        label = rng.random() < 0.5
        return TRUE.format(piece=claim(scene, label, rng)), answer_text(label)
    if kind == "told":
        return told_prompt(scene, rng), true_caption(scene, rng)
    return rng.choice(PROMPTS), trained_caption(scene, rng, prior)


def mark(aspect: str, given: FlawedAnswer) -> int:
    """The right mark of an answer, 1 to 5."""
    return max(1, RATINGS[aspect][1](given))


def rating_prompt(aspect: str, given: FlawedAnswer, scene: Scene, rng: random.Random) -> str:
    """The prompt that asks a judge to rate an answer."""
    return RATINGS[aspect][0].format(
        question=rng.choice(PROMPTS),
        answer=given.text,
        objects=", ".join(scene.names),
        reference=compose([ObjectMention(item.thing, item.cell) for item in scene.items], rng),
    )


def improve_prompt(given: FlawedAnswer, scene: Scene, rng: random.Random, prior: Prior) -> str:
    """The prompt that asks for a better answer. Its description is one of the LVLM's own, so it may be wrong too."""
    return IMPROVE.format(caption=trained_caption(scene, rng, prior), question=rng.choice(PROMPTS), answer=given.text)


def told_prompt(scene: Scene, rng: random.Random) -> str:
    """A request to describe the picture, after the names of the objects that a detector found (it misses a tenth)."""
    seen = [name for name in scene.names if rng.random() < 0.9]
    return TOLD.format(objects=", ".join(sorted(seen, key=NAMES.index)), question=rng.choice(PROMPTS))


def asked(scene: Scene, rng: random.Random) -> SceneQuestion:
    """A question that can be answered from the picture, about what is in it."""
    kind = rng.choices(list(_ASKED), list(_ASKED.values()))[0]
    found = None if kind == "random" else ask(scene, kind, rng.random() < 0.5, rng)
    return found or _of_something_there(scene, rng)


def _of_something_there(scene: Scene, rng: random.Random) -> SceneQuestion:
    name = rng.choice(scene.names)
    return SceneQuestion("random", existence(name), True, name)


def question(scene: Scene, rng: random.Random) -> tuple[str, bool]:
    """A question about an object, a colour or a relation, and its true answer."""
    kind = rng.choices(KINDS, (3, 1, 3, 1, 1))[0]
    found = ask(scene, kind, rng.random() < 0.5, rng) or _of_something_there(scene, rng)
    if found.about is not None and rng.random() < 0.5:
        return THERE.format(object=found.about), found.label
    return found.text, found.label


def claim(scene: Scene, holds: bool, rng: random.Random) -> str:
    """A sentence about some of the scene's objects. A false one names an object that is not there, or a wrong place."""
    given = flawed(scene, rng, wrong=0 if holds else 1, missing=rng.randrange(len(scene.items)))
    if holds or rng.random() < 0.8:
        return given.text
    mentions = [mention(item, rng) for item in scene.items]
    spot = rng.randrange(len(mentions))
    item = scene.items[spot]
    mentions[spot] = ObjectMention(item.thing, rng.choice([cell for cell in range(GRID * GRID) if cell != item.cell]))
    return compose(mentions, rng)


_EXISTENCE: Final = re.compile(r"is there an? (\w+ \w+) in the picture \?")
_ATTRIBUTE: Final = re.compile(r"is the (\w+) (\w+) \?")
_RELATION: Final = re.compile(rf"is the (\w+ \w+) ({'|'.join(truth.RELATIONS)}) the (\w+ \w+) \?")


def about_picture(question: str, scene: Scene) -> bool:
    """Whether a question is well formed and is about something in the scene."""
    if found := _EXISTENCE.fullmatch(question):
        return found[1] in scene.names
    if found := _RELATION.fullmatch(question):
        return found.groups() in truth.relations(scene)
    if found := _ATTRIBUTE.fullmatch(question):
        return found.groups() in truth.attributes(scene)
    return False
