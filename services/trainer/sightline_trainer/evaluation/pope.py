"""POPE: is there a ... in the image? Yes/no questions (Li et al. 2023, arXiv 2305.10355; github.com/AoiDragon/POPE,
evaluate.py at 08d957b).

    accuracy  = (TP + TN) / (TP + FP + TN + FN)        positive: "yes"
    precision = TP / (TP + FP)
    recall    = TP / (TP + FN)
    F1        = 2 TP / (2 TP + FP + FN)
    yes ratio = (TP + FP) / all

Answer rule of the official script: the text up to the first full stop, without commas, split at single spaces; "No",
"not" or "no" among the words means no, everything else means yes, even an empty answer, "NO", "None" and "isn't".
`rule="words"` reads these as people do (case, line ends, other punctuation, n't, "none"); the output counts the answers
that the two rules read differently.

Answers are matched to questions by id, and must contain the question: all of POPE's sets count from 1, so by ids alone
the answers to one set would be scored as another set's. The official script pairs the two files by position, so that
one missing answer shifts all that follow; here a missing answer is an error that names the question. Official answer
files have no ids: `compat="official"` matches them by position, and then every question's text must be the same in
both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.coco import image_key
from sightline_trainer.evaluation.lines import Line, Row, named, read_lines
from sightline_trainer.evaluation.ratios import Part, Ratios

Rule = Literal["official", "words"]

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
_NO = frozenset({"no", "not", "none", "nope", "cannot"})


def official_no(answer: str) -> bool:
    """Whether the official rule reads an answer as "no"."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "No" in words or "not" in words or "no" in words


def words_no(answer: str) -> bool:
    """Whether the first sentence says no, regardless of case and punctuation."""
    sentence = re.split(r"[.!?]", answer.strip(), maxsplit=1)[0].lower()
    words = _WORD.findall(sentence)
    return any(word in _NO or word.endswith(("n't", "n’t")) for word in words)


RULES: dict[Rule, Callable[[str], bool]] = {"official": official_no, "words": words_no}


@dataclass(frozen=True)
class Question:
    """A yes/no question. `kind` is a part of the set that is also reported separately, "" if there is only one."""

    id: str
    image: str
    text: str
    yes: bool
    kind: str = ""


@dataclass(frozen=True)
class Confusion:
    """Counts; "yes" is positive. A ratio with denominator 0 is None."""

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
        """Numerator and denominator of each metric."""
        return {
            "accuracy": (self.tp + self.tn, self.total),
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.tp + self.fn),
            "f1": (2 * self.tp, 2 * self.tp + self.fp + self.fn),
            "yes_ratio": (self.tp + self.fp, self.total),
        }

    def metrics(self) -> dict[str, float | None]:
        """All metrics; F1 is None only if there is neither a "yes" nor a question whose answer is yes."""
        return {name: above / below if below else None for name, (above, below) in self.parts().items()}


@dataclass(frozen=True)
class Answered:
    """Questions with their answers and how a rule reads them."""

    questions: list[Question]
    answers: list[str]
    rule: Rule

    def said(self) -> list[bool]:
        """For each question: whether the answer was yes."""
        return [not RULES[self.rule](answer) for answer in self.answers]

    def confusion(self, kind: str | None = None) -> Confusion:
        """The counts for one kind of question, or for all."""
        total = Confusion()
        for question, said in zip(self.questions, self.said(), strict=True):
            if kind is None or question.kind == kind:
                total += Confusion.one(question.yes, said)
        return total

    def kinds(self) -> list[str]:
        """The kinds of question, in order of appearance."""
        return list(dict.fromkeys(question.kind for question in self.questions))

    def ratios(self, kind: str | None = None) -> Ratios:
        """The metrics by image, for one kind or for all."""
        return Ratios.collect(
            (question.image, Confusion.one(question.yes, said).parts())
            for question, said in zip(self.questions, self.said(), strict=True)
            if kind is None or question.kind == kind
        )

    def read_differently(self) -> int:
        """Number of answers that the two rules read differently."""
        return sum(official_no(answer) != words_no(answer) for answer in self.answers)

    def details(self) -> list[Row]:
        """For each question: the answer, its reading, and the truth."""
        return [
            {"question_id": q.id, "image": q.image, "text": q.text, "answer": answer, "said": said, "label": q.yes}
            for q, answer, said in zip(self.questions, self.answers, self.said(), strict=True)
        ]


def read_questions(path: Path, *, image_at: str = "image", labelled_only: bool = False) -> list[Question]:
    """Questions from JSON lines `{"question_id", "image", "text", "label"}` and optionally `kind`.

    Args:
        path: the file.
        image_at: the key of the image's name; "id" in a dataset, whose questions name their prompt.
        labelled_only: skip lines without a label: in a dataset they are not yes/no questions.

    Raises:
        InvalidInput: a line can't be read or an id is duplicate; the message names it.
    """
    found: dict[str, Question] = {}
    for line in read_lines(path, [] if labelled_only else ["question_id", "text", "label"]):
        if labelled_only and "label" not in line.row:
            continue
        key, label = line.name("question_id"), line.row["label"]
        if label not in ("yes", "no"):
            raise line.fault(f"label is {label!r}; wanted yes or no")
        if key in found:
            raise line.fault(f"question_id {key} occurs twice")
        image = line.name(image_at) if image_at in line.row else key
        kind = line.text("kind") if "kind" in line.row else ""
        found[key] = Question(key, image, line.text("text"), label == "yes", kind)
    if not found and not labelled_only:
        raise InvalidInput(f"{path} contains no question", reason="EMPTY")
    return list(found.values())


@dataclass(frozen=True)
class GivenAnswers:
    """Answers by question id. `checked` says how they were matched to the questions."""

    by_id: dict[str, str]
    checked: str


def read_answers(
    path: Path, questions: Sequence[Question], compat: str = "mended", *, trust_ids: bool = False
) -> GivenAnswers:
    """Answers by question id, from objects `{"question_id", "question", "image", "answer"}`.

    The answer is under `answer`, `response` or `text`; the question is under `question`, `prompt` or, beside an
    `answer` or `response`, `text`.

    Args:
        path: the file.
        questions: the questions.
        compat: "official" reads files without ids, `{"question", "answer"}`, by position.
        trust_ids: accept answers without their question.

    Raises:
        InvalidInput: a line can't be read, an answer is to another question or about another image, or a question is
            answered twice or was not asked; the message names it.
    """
    asked = {question.id: question for question in questions}
    found: dict[str, str] = {}
    texts = images = 0
    for position, line in enumerate(read_lines(path, [])):
        if "question_id" in line.row:
            key = line.name("question_id")
        elif compat == "official":
            key = _by_position(line, position, questions)
        else:
            raise line.fault(
                "no question_id; add it, or use --compat official to pair answers and questions by position"
            )
        answer = next((name for name in ("answer", "response", "text") if name in line.row), "answer")
        if not isinstance(line.row.get(answer), str):
            raise line.fault(f"question {key} has no text under `{answer}`")
        if key in found:
            raise line.fault(f"question {key} is answered twice")
        if key not in asked:
            raise line.fault(f"question {key} was not asked")
        text, image = _belongs(line, asked[key], answer)
        if not text and not trust_ids:
            raise line.fault(
                f"the answer to question {key} does not contain the question, so it may be an answer to another "
                "set's question of that id; write the question's text under `question` (and its `image`), or use "
                "--trust-ids"
            )
        texts, images = texts + text, images + image
        found[key] = line.text(answer)
    return GivenAnswers(found, _checked(len(found), texts, images))


def _belongs(line: Line, question: Question, answer: str) -> tuple[bool, bool]:
    """Whether the question's text and image are given with the answer; raises if they differ."""
    names = [name for name in ("question", "prompt", "text") if name in line.row and name != answer]
    for name in names:
        # Text appended for the model (" Answer yes or no.") is ignored.
        if _plain(question.text) not in _plain(line.text(name)):
            raise line.fault(
                f"answers {line.text(name)!r}, but question {question.id} is {question.text!r}; these are answers to "
                "another set of questions"
            )
    has_image = "image" in line.row
    if has_image and _image_name(line.name("image")) != _image_name(question.image):
        raise line.fault(
            f"answers about image {line.name('image')!r}, but question {question.id} is about {question.image!r}; "
            "these are answers to another set of questions"
        )
    return bool(names), has_image


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _image_name(name: str) -> str:
    """An image's name without directories; for COCO, its number."""
    return image_key(PurePosixPath(name.replace("\\", "/")).name)


def _checked(answers: int, texts: int, images: int) -> str:
    if images == texts == answers:
        return "id, text and image"
    return "id and text" if texts == answers else "id alone for some" if texts else "id alone"


def _by_position(line: Line, position: int, questions: Sequence[Question]) -> str:
    if position >= len(questions):
        raise line.fault(f"more answers than questions ({len(questions)})")
    question = questions[position]
    if line.row.get("question") != question.text:
        raise line.fault(
            f"question {line.row.get('question')!r} where question {question.id} is {question.text!r}; the files are "
            "not in the same order or an answer is missing"
        )
    return question.id


def match(questions: Sequence[Question], answers: Mapping[str, str], rule: Rule = "official") -> Answered:
    """Questions with their answers.

    Raises:
        InvalidInput: questions have no answer; the message names them.
    """
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise InvalidInput(
            f"{len(missing)} of {len(questions)} questions have no answer: question_id {named(missing)}; answer them "
            "(an empty answer counts, by the official rule, as yes)",
            reason="MISSING_ANSWER",
        )
    return Answered(list(questions), [answers[question.id] for question in questions], rule)
