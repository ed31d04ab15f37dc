"""What the skilled LVLM can do: every number of its card, on held-out validation scenes, by transformers' generate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from sightline_playground import llava_model, skills
from sightline_playground.captions import PROMPTS, Prior, mentioned, with_companion
from sightline_playground.flaws import FlawedAnswer, flawed
from sightline_playground.metrics import answer_metrics, caption_metrics
from sightline_playground.questions import KINDS, questions
from sightline_playground.sampling import answers
from sightline_playground.scenes import Scene, scenes
from sightline_playground.truth import companions_absent
from sightline_playground.world import stream

SCENES: Final = 300
SEED: Final = 30_000
"""Seed of the validation scenes."""
ASPECTS: Final = ("help", "faith", "facts", "agree")
"""Aspects whose right mark depends on the answer."""


def measure(directory: Path, tell: Callable[[str], None] = lambda _: None, count: int = SCENES) -> dict[str, float]:
    """Every number by its name, for the model in `directory`."""
    model, processor = llava_model.load(directory)
    held_out = scenes("validation", count, SEED)
    numbers: dict[str, float] = {}
    for name, part in (
        ("ratings", rating_numbers),
        ("yes/no answers", answer_numbers),
        ("improvements", improvement_numbers),
        ("questions", question_numbers),
        ("captions", caption_numbers),
    ):
        tell(name)
        numbers |= part(model, processor, held_out)
    return numbers


def rating_numbers(
    model: Any, processor: Any, held_out: Sequence[Scene], aspects: Sequence[str] = ASPECTS
) -> dict[str, float]:
    """For each aspect, the share of right marks and the share of the commonest mark. Also how often a true caption gets
    a higher mark than the same caption with one companion added."""
    numbers: dict[str, float] = {}
    for aspect in aspects:
        rng = stream("skilled measure", aspect)
        given = [flawed(scene, rng) for scene in held_out]
        right = [str(skills.mark(aspect, each)) for each in given]
        prompts = [skills.rating_prompt(aspect, *both, rng) for both in zip(given, held_out, strict=True)]
        said = _first_words(answers(model, processor, held_out, prompts, temperature=0.0))
        numbers[f"rate_{aspect}_accuracy"] = fmean(one == other for one, other in zip(said, right, strict=True))
        numbers[f"rate_{aspect}_chance"] = max(Counter(right).values()) / len(right)
    rng = stream("skilled measure", "order")
    chosen = [scene for scene in held_out if companions_absent(scene)]
    pairs = [with_companion(scene, rng) for scene in chosen]
    marks = []
    for texts in zip(*pairs, strict=True):
        given = [FlawedAnswer(text, "", 0, 0) for text in texts]
        prompts = [skills.rating_prompt("faith", *both, rng) for both in zip(given, chosen, strict=True)]
        marks.append(_first_words(answers(model, processor, chosen, prompts, temperature=0.0)))
    numbers["rate_order"] = fmean(true > false for true, false in zip(*marks, strict=True))
    return numbers


def answer_numbers(model: Any, processor: Any, held_out: Sequence[Scene]) -> dict[str, float]:
    """Share of right answers for each kind of question and for whole claims; yes and no are equally often right."""
    rng = stream("skilled measure", "answers")
    asked: list[tuple[Scene, str, str, bool]] = []
    for scene in held_out:
        asked += [(scene, each.kind, each.text, each.label) for each in questions(scene, rng)]
        for label in (True, False):
            asked.append((scene, "claim", skills.TRUE.format(piece=skills.claim(scene, label, rng)), label))
    said = answers(model, processor, [scene for scene, *_ in asked], [text for _, _, text, _ in asked], temperature=0.0)
    numbers: dict[str, float] = {}
    for kind in (*KINDS, "claim"):
        rows = [(label, text) for (_, each, _, label), text in zip(asked, said, strict=True) if each == kind]
        told = answer_metrics([label for label, _ in rows], [text for _, text in rows])
        numbers[f"answer_{kind}_accuracy"] = told.accuracy
    return numbers


def improvement_numbers(model: Any, processor: Any, held_out: Sequence[Scene]) -> dict[str, float]:
    """CHAIR_s and cover of answers with one or two wrong objects, before and after, and the share that got better."""
    rng, prior = stream("skilled measure", "improve"), Prior()
    given = [flawed(scene, rng, wrong=rng.choice((1, 1, 2))) for scene in held_out]
    prompts = [skills.improve_prompt(*both, rng, prior) for both in zip(given, held_out, strict=True)]
    said = answers(model, processor, held_out, prompts, temperature=0.0)
    before, after = (caption_metrics(held_out, texts) for texts in ([each.text for each in given], said))
    return {
        "improve_given_chair_s": before.chair_s,
        "improve_chair_s": after.chair_s,
        "improve_given_cover": before.cover,
        "improve_cover": after.cover,
        "improve_better": fmean(
            f1(scene, new) > f1(scene, old.text) for scene, old, new in zip(held_out, given, said, strict=True)
        ),
    }


def question_numbers(model: Any, processor: Any, held_out: Sequence[Scene]) -> dict[str, float]:
    """Shares of sampled questions: about what is in the picture, about what is in another picture, and distinct."""
    said = answers(model, processor, held_out, [skills.ASK] * len(held_out), temperature=1.0)
    others = [*held_out[1:], held_out[0]]
    return {
        "ask_fits": fmean(map(skills.about_picture, said, held_out)),
        "ask_chance": fmean(map(skills.about_picture, said, others)),
        "ask_distinct": len(set(said)) / len(said),
    }


def caption_numbers(model: Any, processor: Any, held_out: Sequence[Scene]) -> dict[str, float]:
    """CHAIR_s and cover of sampled captions, for a plain request and for a prompt that names the objects."""
    rng = stream("skilled measure", "captions")
    plain = [rng.choice(PROMPTS) for _ in held_out]
    told = [skills.told_prompt(scene, rng) for scene in held_out]
    numbers: dict[str, float] = {}
    for name, prompts in (("describe", plain), ("told", told)):
        found = caption_metrics(held_out, answers(model, processor, held_out, prompts, temperature=1.0))
        numbers |= {f"{name}_chair_s": found.chair_s, f"{name}_cover": found.cover}
    return numbers


def f1(scene: Scene, text: str) -> float:
    """F1 of the objects that a text names against those of the scene."""
    named, there = set(mentioned(text)), set(scene.names)
    return 2 * len(named & there) / (len(named) + len(there))


def _first_words(texts: Sequence[str]) -> list[str]:
    return [(text.split() or [""])[0] for text in texts]
