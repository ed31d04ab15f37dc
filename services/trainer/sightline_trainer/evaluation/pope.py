"""POPE: is there a ... in the image? Yes/no questions (Li et al. 2023, arXiv 2305.10355; github.com/AoiDragon/POPE,
evaluate.py at 08d957b).

    accuracy  = (TP + TN) / (TP + FP + TN + FN)        positive: "yes"
    precision = TP / (TP + FP)
    recall    = TP / (TP + FN)
    F1        = 2 TP / (2 TP + FP + FN)
    yes ratio = (TP + FP) / all

Answer rule of the official script: the text up to the first full stop, without commas, split at single spaces; "No",
"not" or "no" among the words means no, everything else means yes, also an empty answer, "NO", "None" and "isn't".
`rule="words"` reads these as people do (case, line ends, other punctuation, n't, "none"); the output counts how many
answers the two rules read differently.

Answers belong to questions by id. The official script pairs the two files by position, so that one missing answer
shifts all that follow; here it is an error that names the question. Its answer files carry no ids: those are matched by
position with `compat="official"`, and then every question's text must be the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.lines import Row, named, read_rows
from sightline_trainer.evaluation.ratios import Part, Ratios

Rule = Literal["official", "words"]

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
_NO = frozenset({"no", "not", "none", "nope", "cannot"})


def official_no(answer: str) -> bool:
    """Whether the official rule reads an answer as "no"."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "No" in words or "not" in words or "no" in words


def words_no(answer: str) -> bool:
    """Whether the first sentence says no, in any case and with any punctuation."""
    sentence = re.split(r"[.!?]", answer.strip(), maxsplit=1)[0].lower()
    words = _WORD.findall(sentence)
    return any(word in _NO or word.endswith(("n't", "n’t")) for word in words)


RULES: dict[Rule, Callable[[str], bool]] = {"official": official_no, "words": words_no}


@dataclass(frozen=True)
class Question:
    """A yes/no question. `kind` is a part of the set that is also reported alone, "" where there is one part."""

    id: str
    image: str
    text: str
    yes: bool
    kind: str = ""


@dataclass(frozen=True)
class Confusion:
    """Counts; "yes" is positive. A ratio of nothing is None."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.tn + other.tn, self.fn + other.fn)

    @classmethod
    def one(cls, truth: bool, said: bool) -> Confusion:
        """One answered question."""
        return cls(int(truth and said), int(said and not truth), int(not truth and not said), int(truth and not said))

    @property
    def total(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    def parts(self) -> dict[str, Part]:
        """Above and below the line of each metric."""
        return {
            "accuracy": (self.tp + self.tn, self.total),
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.tp + self.fn),
            "f1": (2 * self.tp, 2 * self.tp + self.fp + self.fn),
            "yes_ratio": (self.tp + self.fp, self.total),
        }

    def metrics(self) -> dict[str, float | None]:
        """All metrics; F1 is None only where there is neither a "yes" nor a question whose answer is yes."""
        return {name: above / below if below else None for name, (above, below) in self.parts().items()}


@dataclass(frozen=True)
class Answered:
    """Questions with their answers and how a rule reads them."""

    questions: list[Question]
    answers: list[str]
    rule: Rule

    def said(self) -> list[bool]:
        """For each question: was yes said?"""
        return [not RULES[self.rule](answer) for answer in self.answers]

    def confusion(self, kind: str | None = None) -> Confusion:
        """The counts of one kind of question, or of all."""
        total = Confusion()
        for question, said in zip(self.questions, self.said(), strict=True):
            if kind is None or question.kind == kind:
                total += Confusion.one(question.yes, said)
        return total

    def kinds(self) -> list[str]:
        """The kinds of question, in order of appearance."""
        return list(dict.fromkeys(question.kind for question in self.questions))

    def ratios(self, kind: str | None = None) -> Ratios:
        """The metrics by image, of one kind or of all."""
        return Ratios.collect(
            (question.image, Confusion.one(question.yes, said).parts())
            for question, said in zip(self.questions, self.said(), strict=True)
            if kind is None or question.kind == kind
        )

    def read_differently(self) -> int:
        """How many answers the two rules read differently."""
        return sum(official_no(answer) != words_no(answer) for answer in self.answers)

    def details(self) -> list[Row]:
        """For each question: the answer, how it was read, and the truth."""
        return [
            {"question_id": q.id, "image": q.image, "text": q.text, "answer": answer, "said": said, "label": q.yes}
            for q, answer, said in zip(self.questions, self.answers, self.said(), strict=True)
        ]


def read_questions(path: Path, *, image_key: str = "image", labelled_only: bool = False) -> list[Question]:
    """Questions from JSON lines `{"question_id", "image", "text", "label"}` and optionally `kind`.

    Args:
        path: the file.
        image_key: where the image's name stands; "id" in a dataset, whose questions name their prompt.
        labelled_only: pass over lines without a label: in a dataset they are no yes/no questions.

    Raises:
        InvalidInput: names the line that can't be read, or an id that stands twice.
    """
    found: dict[str, Question] = {}
    for number, row in read_rows(path, [] if labelled_only else ["question_id", "text", "label"]):
        if labelled_only and "label" not in row:
            continue
        if "question_id" not in row or "text" not in row:
            raise InvalidInput(f"{path}, line {number}: needs question_id and text", reason="LINE")
        if row["label"] not in ("yes", "no"):
            raise InvalidInput(f"{path}, line {number}: label is {row['label']!r}; wanted yes or no", reason="LINE")
        key = str(row["question_id"])
        if key in found:
            raise InvalidInput(f"{path}, line {number}: question_id {key} stands twice", reason="LINE")
        image = str(row.get(image_key, key))
        found[key] = Question(key, image, str(row["text"]), row["label"] == "yes", str(row.get("kind", "")))
    if not found and not labelled_only:
        raise InvalidInput(f"{path} holds no question", reason="EMPTY")
    return list(found.values())


def read_answers(path: Path, questions: Sequence[Question], compat: str = "mended") -> dict[str, str]:
    """Answers by question id, from JSON lines `{"question_id", "answer"}`.

    Args:
        path: the file; `text` or `response` may stand in place of `answer`.
        questions: those that were asked.
        compat: "official" reads files without ids, `{"question", "answer"}`, by position.

    Raises:
        InvalidInput: names the line that can't be read, a question that is answered twice or was not asked.
    """
    asked = {question.id: question for question in questions}
    found: dict[str, str] = {}
    for position, (number, row) in enumerate(read_rows(path, [])):
        if "question_id" in row:
            key = str(row["question_id"])
        elif compat == "official":
            key = _by_position(path, number, position, row, questions)
        else:
            raise InvalidInput(
                f"{path}, line {number}: no question_id; add it, or use --compat official to pair answers and "
                "questions by position",
                reason="LINE",
            )
        answer = next((row[name] for name in ("answer", "text", "response") if isinstance(row.get(name), str)), None)
        if answer is None:
            raise InvalidInput(f"{path}, line {number}: question {key} has no text under `answer`", reason="LINE")
        if key in found:
            raise InvalidInput(f"{path}, line {number}: question {key} is answered twice", reason="LINE")
        if key not in asked:
            raise InvalidInput(f"{path}, line {number}: question {key} was not asked", reason="LINE")
        found[key] = answer
    return found


def _by_position(path: Path, number: int, position: int, row: Row, questions: Sequence[Question]) -> str:
    if position >= len(questions):
        raise InvalidInput(f"{path}, line {number}: more answers than questions ({len(questions)})", reason="LINE")
    question = questions[position]
    if row.get("question") != question.text:
        raise InvalidInput(
            f"{path}, line {number}: question {row.get('question')!r} where question {question.id} is "
            f"{question.text!r}; the files are not in the same order or an answer is missing",
            reason="LINE",
        )
    return question.id


def match(questions: Sequence[Question], answers: Mapping[str, str], rule: Rule = "official") -> Answered:
    """Questions with their answers.

    Raises:
        InvalidInput: questions without an answer; names them.
    """
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise InvalidInput(
            f"{len(missing)} of {len(questions)} questions have no answer: question_id {named(missing)}; answer them "
            "(an empty answer counts, by the official rule, as yes)",
            reason="MISSING_ANSWER",
        )
    return Answered(list(questions), [answers[question.id] for question in questions], rule)
