"""The questions that every policy gets, and the truth about them."""

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
"""Kinds of question outside POPE, which are reported separately."""


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts for captions, and yes/no questions about the same images.

    Attributes:
        prompts: each gets one sampled caption.
        facts: None if the dataset has no vocabulary.json; then only metrics without truth are measured.
        questions: each with the prompt whose image it is about.
        greedy: number of prompts that also get a greedy caption.
        diverse, samples: number of prompts with several samples, and number of these samples, for diversity.
        temperature: temperature of the sampled captions.
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
        """Build it with a dataset's further files: vocabulary.json, truth.jsonl, questions.jsonl, each if it exists.

        Raises:
            InvalidInput: a file can't be read; the message says which and where.
        """
        known = (directory / "vocabulary.json").is_file()
        facts = Facts.load(directory, [prompt.id for prompt in prompts]) if known else None
        path = directory / "questions.jsonl"
        questions = about(prompts, path, settings.questions) if settings.questions and path.is_file() else []
        sampled = settings.temperature > 0  # greedy samples are all equal
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
        """Number of requests."""
        return len(self.prompts) + self.greedy + len(self.questions)


def about(prompts: Sequence[Prompt], path: Path, count: int | None) -> list[tuple[Prompt, Question]]:
    """About `count` questions on these prompts' images (None: all), the same number of each kind, spread over the
    images. If an image's questions of a kind are taken, all are, so that yes and no remain balanced."""
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
