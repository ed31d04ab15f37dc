"""EvaluationSet: the questions that every policy gets, and what is known of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sightline_trainer.evaluation.facts import Facts
from sightline_trainer.evaluation.pope import Question, read_questions
from sightline_trainer.records.prompt import Prompt

if TYPE_CHECKING:
    from sightline_trainer.sections import Evaluation

FACT_KINDS = ("attribute", "relation")
"""Kinds of question that are not POPE's: they are reported apart."""


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts for captions, and yes/no questions about the same images.

    Attributes:
        prompts: each gets one sampled caption.
        facts: None if the dataset has no vocabulary.json; then only what needs no truth is measured.
        questions: with the prompt whose image each is about.
        greedy: how many of the prompts get a greedy caption too.
        diverse, samples: how many of the prompts get how many samples, for diversity.
        temperature: of the sampled captions.
    """

    prompts: list[Prompt]
    facts: Facts | None
    questions: list[tuple[Prompt, Question]] = field(default_factory=list)
    greedy: int = 0
    diverse: int = 0
    samples: int = 1
    temperature: float = 1.0

    @classmethod
    def load(cls, directory: Path, prompts: list[Prompt], settings: Evaluation) -> EvaluationSet:
        """With the side files of a dataset: vocabulary.json, truth.jsonl, questions.jsonl, each if it is there.

        Raises:
            InvalidInput: a file can't be read; says which and where.
        """
        known = (directory / "vocabulary.json").is_file()
        facts = Facts.load(directory, [prompt.id for prompt in prompts]) if known else None
        path = directory / "questions.jsonl"
        questions = about(prompts, path, settings.questions) if settings.questions and path.is_file() else []
        sampled = settings.temperature > 0  # greedy samples are all alike
        return cls(
            prompts,
            facts,
            questions,
            greedy=min(settings.greedy_prompts, len(prompts)) if sampled else 0,
            diverse=min(settings.diverse_prompts, len(prompts)) if sampled else 0,
            samples=settings.samples,
            temperature=settings.temperature,
        )

    @property
    def total(self) -> int:
        """How many things are asked."""
        return len(self.prompts) + self.greedy + len(self.questions)


def about(prompts: Sequence[Prompt], path: Path, count: int | None) -> list[tuple[Prompt, Question]]:
    """About `count` questions on these prompts' images (None: all): as many of each kind, spread over the images, and
    all questions of a kind that an image has (yes and no stay equally many)."""
    by_id = {prompt.id: prompt for prompt in prompts}
    groups: dict[str, dict[str, list[Question]]] = {}
    for question in read_questions(path, image_at="id", labelled_only=True):
        if question.image in by_id:
            groups.setdefault(question.kind, {}).setdefault(question.image, []).append(question)
    chosen = []
    for images in groups.values():
        each = max(map(len, images.values()))
        wanted = len(images) if count is None else min(len(images), max(1, count // len(groups) // each))
        names = list(images)
        for at in range(wanted):
            image = names[at * len(names) // wanted]
            chosen += [(by_id[image], question) for question in images[image]]
    return chosen
