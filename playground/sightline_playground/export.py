"""Export a split as a plain dataset without references to the playground: pictures, prompts, questions, vocabulary.

    DIR/images/test-000000.png     48 x 48 RGB
    DIR/prompts.jsonl              {"id", "image", "prompt", "reference", "objects"}
    DIR/questions.jsonl            {"question_id", "id", "image", "text", "label", "kind", "right", "wrong", and after
                                   objects "right_statement", "wrong_statement"}; splits align and test
    DIR/truth.jsonl                {"id", "relations": {object: where it is}}
    DIR/vocabulary.json            {"objects", "synonyms", "attributes", "relations", "companions"}

Every path is relative to DIR. The same split, count and seed give the same files, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from sightline_playground.captions import PROMPTS, claiming, plain_caption
from sightline_playground.drawing import draw
from sightline_playground.questions import FACT_KINDS, POPE_KINDS, SceneQuestion, answer_text, questions
from sightline_playground.scenes import Scene, Split, scenes
from sightline_playground.world import COLOURS, NAMES, PLACES, THINGS, stream

QUESTION_SPLITS: Final[tuple[Split, ...]] = ("align", "test")


def export(out: Path, split: Split, count: int, seed: int = 0) -> list[Scene]:
    """Write `count` scenes of a split under `out` (made if need be) and return them.

    Raises:
        ValueError: for a split that does not exist, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"count {count}; wanted 1 or more")
    chosen = scenes(split, count, seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(chosen):
        draw(scene).save(out / image_path(split, number), format="PNG")
    write_lines(out / "prompts.jsonl", prompt_rows(chosen, split, seed))
    if split in QUESTION_SPLITS:
        write_lines(out / "questions.jsonl", question_rows(chosen, split, seed))
    write_lines(out / "truth.jsonl", truth_rows(chosen, split))
    (out / "vocabulary.json").write_text(json.dumps(vocabulary(), indent=2) + "\n", encoding="utf-8")
    return chosen


def scene_id(split: Split, number: int) -> str:
    """For example "test-000042"."""
    return f"{split}-{number:06d}"


def image_path(split: Split, number: int) -> str:
    """The picture's path, relative to the export's directory."""
    return f"images/{scene_id(split, number)}.png"


def prompt_rows(chosen: Iterable[Scene], split: Split, seed: int) -> list[dict[str, Any]]:
    """The rows of prompts.jsonl; each scene gets one of the seven paraphrases."""
    rng = stream("prompts", split, seed)
    return [
        {
            "id": scene_id(split, number),
            "image": image_path(split, number),
            "prompt": rng.choice(PROMPTS),
            "reference": plain_caption(scene),
            "objects": list(scene.names),
        }
        for number, scene in enumerate(chosen)
    ]


def question_rows(chosen: Sequence[Scene], split: Split, seed: int) -> list[dict[str, Any]]:
    """The rows of questions.jsonl, as many with label "yes" as with "no": first per scene up to six in POPE's manner,
    then, in split test, per scene up to two after attributes and two after relations."""
    parts = (("questions", POPE_KINDS), ("questions of truth", FACT_KINDS))
    asked = [
        (number, question)
        for name, kinds in (parts if split == "test" else parts[:1])
        for rng in [stream(name, split, seed)]
        for number, scene in enumerate(chosen)
        for question in questions(scene, rng, kinds)
    ]
    return [
        {
            "question_id": index,
            "id": scene_id(split, number),
            "image": image_path(split, number),
            "text": question.text,
            "label": "yes" if question.label else "no",
            "kind": question.kind,
            "right": answer_text(question.label),
            "wrong": answer_text(not question.label),
            **_statements(chosen[number], question),
        }
        for index, (number, question) in enumerate(asked)
    ]


def _statements(scene: Scene, question: SceneQuestion) -> dict[str, str]:
    """What each answer to a question about an object says about the picture, as captions that a scorer can compare."""
    if question.about is None:
        return {}
    return {
        "right_statement": claiming(scene, question.about, question.label),
        "wrong_statement": claiming(scene, question.about, not question.label),
    }


def truth_rows(chosen: Iterable[Scene], split: Split) -> list[dict[str, Any]]:
    """The rows of truth.jsonl: where each object of a scene is."""
    return [
        {"id": scene_id(split, number), "relations": {item.thing.name: [PLACES[item.cell]] for item in scene.items}}
        for number, scene in enumerate(chosen)
    ]


def vocabulary() -> dict[str, Any]:
    """The words by which an evaluator finds objects, attributes and relations in a caption, and by which errors are
    written; this world has no synonyms."""
    return {
        "objects": list(NAMES),
        "synonyms": {},
        "attributes": [list(COLOURS)],
        "relations": [list(PLACES)],
        "companions": {thing.name: thing.companion.name for thing in THINGS},
    }


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
