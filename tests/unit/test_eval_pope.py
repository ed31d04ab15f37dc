"""POPE: the official answer rule, matching by id, real counts."""

import json
from pathlib import Path

import pytest
from running import ROOT
from sightline.errors import InvalidInput
from sightline_trainer.evaluation.pope import Confusion, match, official_no, read_answers, read_questions, words_no
from sightline_trainer.evaluation.suites import pope_result

FIXTURES = ROOT / "tests/fixtures/eval"


def test_the_arithmetic_on_real_counts() -> None:
    """LLaVA issue 626: the official script's output for a real model."""
    metrics = Confusion(tp=1183, fp=31, tn=1379, fn=317).metrics()
    assert metrics["accuracy"] == pytest.approx(0.8804123711340206, abs=1e-15)
    assert metrics["precision"] == pytest.approx(0.9744645799011532, abs=1e-15)
    assert metrics["recall"] == pytest.approx(0.7886666666666666, abs=1e-15)
    assert metrics["f1"] == pytest.approx(0.8717759764185703, abs=1e-15)
    assert metrics["yes_ratio"] == (1183 + 31) / 2910


def test_division_by_zero_is_none() -> None:
    assert Confusion(tn=3).metrics() == {
        "accuracy": 1.0, "precision": None, "recall": None, "f1": None, "yes_ratio": 0.0,
    }  # fmt: skip
    assert set(Confusion().metrics().values()) == {None}


@pytest.mark.parametrize(
    ("answer", "official", "words"),
    [
        ("No", True, True),
        ("no", True, True),
        ("No, there is none", True, True),
        ("there is not", True, True),
        ("NO", False, True),
        ("none", False, True),
        ("", False, False),
        ("there isn't", False, True),
        ("Yes. It is not large", False, False),
        ("no\n", False, True),
        ("No.", True, True),
        ("know", False, False),
        ("a knot", False, False),
        ("Well no!", False, True),
    ],
)
def test_how_answers_are_read(answer: str, official: bool, words: bool) -> None:
    assert official_no(answer) is official
    assert words_no(answer) is words


def test_the_fixtures_as_counted_by_hand() -> None:
    questions = read_questions(FIXTURES / "pope_questions.jsonl")
    answers = read_answers(FIXTURES / "pope_answers.jsonl", questions).by_id
    assert match(questions, answers).confusion() == Confusion(tp=3, fp=3, tn=1, fn=1)
    assert match(questions, answers, "words").confusion() == Confusion(tp=3, fp=1, tn=3, fn=1)
    assert match(questions, answers).read_differently() == 2
    assert match(questions, answers).confusion("random") == Confusion(tp=2, fp=1, tn=1, fn=0)
    value = pope_result(questions, answers).to_json(details=True)
    assert value["counts"]["tp"] == 3
    assert value["counts"]["popular/questions"] == 4
    assert value["metrics"]["f1"]["value"] == 6 / 10
    assert value["metrics"]["random/f1"]["value"] == 4 / 5
    assert (value["metrics"]["accuracy"]["numerator"], value["metrics"]["accuracy"]["denominator"]) == (4, 8)
    assert value["interval"]["images"] == 4


def test_a_missing_answer_is_named() -> None:
    questions = read_questions(FIXTURES / "pope_questions.jsonl")
    answers = read_answers(FIXTURES / "pope_answers.jsonl", questions).by_id
    del answers["3"]
    with pytest.raises(InvalidInput, match="question_id '3'") as caught:
        match(questions, answers)
    assert caught.value.reason == "MISSING_ANSWER"


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_without_ids_go_by_position_only_when_asked_and_only_in_order(tmp_path: Path) -> None:
    questions = read_questions(FIXTURES / "pope_questions.jsonl")
    rows = [{"question": question.text, "answer": "yes"} for question in questions]
    path = lines(tmp_path / "answers.jsonl", list(rows))
    with pytest.raises(InvalidInput, match="--compat official"):
        read_answers(path, questions)
    assert match(questions, read_answers(path, questions, "official").by_id).confusion() == Confusion(tp=4, fp=4)
    lines(path, rows[:2] + rows[3:])
    with pytest.raises(InvalidInput, match=r"line 3: .*not in the same order or an answer is missing"):
        read_answers(path, questions, "official")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question_id": 1, "answer": "no"}, "answered twice"),
        ({"question_id": 77, "answer": "no"}, "was not asked"),
        ({"question_id": 2}, "no text under `answer`"),
        ({"question_id": 2, "answer": None}, "no text under `answer`"),
    ],
)
def test_answers_that_can_not_be_used_are_named(tmp_path: Path, row: dict[str, object], complaint: str) -> None:
    questions = read_questions(FIXTURES / "pope_questions.jsonl")
    path = lines(tmp_path / "answers.jsonl", [{"question_id": 1, "answer": "yes"}, row])
    with pytest.raises(InvalidInput, match=f"line 2: .*{complaint}"):
        read_answers(path, questions, trust_ids=True)


def test_questions_that_can_not_be_used_are_named(tmp_path: Path) -> None:
    good: dict[str, object] = {"question_id": 1, "image": "a", "text": "?", "label": "yes"}
    with pytest.raises(InvalidInput, match="line 2: question_id 1 occurs twice"):
        read_questions(lines(tmp_path / "q.jsonl", [good, good]))
    with pytest.raises(InvalidInput, match="wanted yes or no"):
        read_questions(lines(tmp_path / "q.jsonl", [{**good, "label": "maybe"}]))
