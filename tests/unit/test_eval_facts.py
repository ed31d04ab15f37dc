"""Objects, attributes and relations of captions; degenerate texts; diversity. Counted by hand."""

import json
from pathlib import Path

import pytest
from sightline.errors import InvalidInput
from sightline_trainer.evaluation.evaluation_set import EvaluationSet, about
from sightline_trainer.evaluation.facts import Facts
from sightline_trainer.evaluation.texts import degenerate, distinct
from sightline_trainer.pools import open_pool
from sightline_trainer.sections import Evaluation


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    vocabulary = {
        "objects": ["red star", "blue star", "red ring", "blue ring"],
        "attributes": [["red", "blue"]],
        "relations": [["at the top", "at the top left", "on the left"]],
    }
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary))
    rows = [{"id": "a", "relations": {"red star": ["at the top left"]}}, {"id": "b", "relations": {}}]
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Facts.load(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("text", "chair_i", "attributes", "relations"),
    [
        ("a red star at the top left .", (0, 1), (1, 1), (1, 1)),
        ("a red star at the top .", (0, 1), (1, 1), (0, 1)),
        ("a blue star at the top left", (1, 1), (0, 1), (0, 0)),
        ("a red ring on the left", (1, 1), (0, 0), (0, 0)),
        ("a red star and a blue star on the left", (1, 2), (1, 2), (0, 0)),
        ("Red Star,  on the left", (0, 1), (1, 1), (0, 0)),
        ("a RED star  On the  left of", (0, 1), (1, 1), (0, 1)),
        ("nothing", (0, 0), (0, 0), (0, 0)),
    ],
)
def test_statements_about_attributes_and_relations(
    facts: Facts, text: str, chair_i: tuple[int, int], attributes: tuple[int, int], relations: tuple[int, int]
) -> None:
    parts = facts.read("a", text, ["red star"]).parts()
    assert parts["chair_i"] == chair_i
    assert parts["attribute_accuracy"] == attributes
    assert parts["relation_accuracy"] == relations


def test_without_truth_and_groups_only_objects_count(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": ["red star"]}))
    parts = Facts.load(tmp_path).read("a", "a red star at the top", ["red star"]).parts()
    assert parts["cover"] == (1, 1)
    assert parts["attribute_accuracy"] == parts["relation_accuracy"] == (0, 0)
    with pytest.raises(InvalidInput, match="vocabulary"):
        Facts.load(tmp_path / "none")


def test_the_playground_references_state_nothing_but_the_truth(playground: Path) -> None:
    facts = Facts.load(playground / "test")
    rows = [json.loads(line) for line in (playground / "test/prompts.jsonl").read_text().splitlines()]
    for row in rows:
        count = len(row["objects"])
        parts = facts.read(row["id"], row["reference"], row["objects"]).parts()
        assert parts["chair_i"] == (0, count)
        assert parts["cover"] == parts["attribute_accuracy"] == parts["relation_accuracy"] == (count, count)


@pytest.mark.parametrize(
    ("text", "finish", "why"),
    [
        ("a red star .", "eos", ""),
        ("", "eos", "empty"),
        (" . ", "eos", "empty"),
        ("a red star", "length", "unfinished"),
        ("and and and a star", "eos", "repeats"),
        ("a star and a star and a star and", "eos", "repeats"),
        ("a star and a star", "eos", ""),
        ("a star at the top and a ring at the top left", "eos", ""),
    ],
)
def test_degenerate_texts(text: str, finish: str, why: str) -> None:
    assert degenerate(text, finish) == why


def test_distinct_samples() -> None:
    assert distinct(["a star", "A  star", "a ring"]) == (2, 3)


def test_questions_are_spread_over_images_kinds_and_answers(playground: Path) -> None:
    prompts = open_pool(playground / "test").head()
    held_out = EvaluationSet.load(playground / "test", prompts, Evaluation(prompts=32, questions=60, greedy_prompts=99))
    kinds = [question.kind for _, question in held_out.questions]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(
        ["random", "popular", "adversarial", "attribute", "relation"], 12
    )
    assert sum(question.yes for _, question in held_out.questions) == 30
    assert len({prompt.id for prompt, _ in held_out.questions}) > 10
    assert all(prompt.id == question.image for prompt, question in held_out.questions)
    assert held_out.greedy == 32
    assert held_out.total == 32 + 32 + 60
    everything = about(prompts, playground / "test/questions.jsonl", None)
    assert len(everything) == len((playground / "test/questions.jsonl").read_text().splitlines())


def test_a_greedy_exam_asks_nothing_twice_and_questions_without_labels_are_passed_over(
    playground: Path, tmp_path: Path
) -> None:
    prompts = open_pool(playground / "test").head(4)
    held_out = EvaluationSet.load(playground / "test", prompts, Evaluation(prompts=4, temperature=0.0))
    assert (held_out.greedy, held_out.diverse) == (0, 0)
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({"id": prompts[0].id, "text": "?", "right": "a", "wrong": "b"})
    )
    bare = EvaluationSet.load(tmp_path, prompts, Evaluation(prompts=4))
    assert bare.questions == []
    assert bare.facts is None
