"""Datasets of `sightline eval run`: the questions of each suite, and how answers become a result.

playground   prompts.jsonl, vocabulary.json, and optionally questions.jsonl, truth.jsonl (docs/data.md)
chair        prompts.jsonl with COCO image ids as `image_id` (else `id`), and truth.json, or COCO's
             instances_*.json and captions_*.json
pope         questions.jsonl or coco_pope_*.json, POPE's own files, and the images
amber        AMBER's data directory (annotations.json, relation.json, safe_words.txt, query/query_all.json), and its
             images in image/ or images/, here or one directory above
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.amber import Amber
from sightline_trainer.evaluation.asking import EvalItem
from sightline_trainer.evaluation.coco import CocoObjects, Compat, image_key, load_truth
from sightline_trainer.evaluation.evaluate import assemble
from sightline_trainer.evaluation.evaluation_set import EvaluationSet, about
from sightline_trainer.evaluation.facts import Facts
from sightline_trainer.evaluation.lines import Line, read_lines, read_value
from sightline_trainer.evaluation.pope import Question, read_questions
from sightline_trainer.evaluation.ratios import Ratios
from sightline_trainer.evaluation.result import Result
from sightline_trainer.evaluation.suites import amber_result, chair_result, pope_result
from sightline_trainer.evaluation.words import Similarity
from sightline_trainer.pools import open_pool
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score

Suite = Literal["playground", "chair", "pope", "amber"]
Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Work:
    """Items to ask, and a function that turns their answers into a result."""

    items: list[EvalItem]
    finish: Callable[[Answers], Result]


@dataclass(frozen=True)
class SuiteOptions:
    """Options of all suites.

    Attributes:
        temperature: temperature of captions; answers to questions are always greedy.
        limit: number of the first images (playground, chair) or questions (pope, amber) to use; None for all.
        suffix: appended to every question, such as " Answer yes or no."
        similarity: AMBER's word similarity.
    """

    temperature: float
    limit: int | None
    compat: Compat
    suffix: str
    similarity: Similarity


def work(suite: Suite, directory: Path, options: SuiteOptions) -> Work:
    """The questions of a suite.

    Raises:
        InvalidInput: the directory does not fit the suite; the message says what is missing.
    """
    if not directory.is_dir():
        raise InvalidInput(f"no dataset directory {directory}; name one with --data", reason="DATASET_NOT_FOUND")
    return {"playground": _playground, "chair": _chair, "pope": _pope, "amber": _amber}[suite](directory, options)


def _playground(directory: Path, options: SuiteOptions) -> Work:
    prompts = open_pool(directory).head(options.limit)
    if other := next((one.id for one in prompts if len(one.images) != 1 or one.turns), None):
        raise InvalidInput(
            f"{other} has several images or turns; this suite asks about one image (a run's evaluation takes both)",
            reason="DATASET",
        )
    path = directory / "questions.jsonl"
    held_out = EvaluationSet(
        prompts,
        Facts.load(directory, [prompt.id for prompt in prompts]),
        about(prompts, path, None) if path.is_file() else [],
        temperature=options.temperature,
    )
    items = [
        EvalItem(f"caption/{one.id}", one.images[0], one.prompt, options.temperature, scored=True) for one in prompts
    ]
    items += [
        EvalItem(f"question/{question.id}", prompt.images[0], question.text + options.suffix, 0.0)
        for prompt, question in held_out.questions
    ]

    def finish(answers: Answers) -> Result:
        captioned = [([_candidate(one.id, answers[f"caption/{one.id}"])], None) for one in prompts]
        said = [_candidate(prompt.id, answers[f"question/{one.id}"]) for prompt, one in held_out.questions]
        found = assemble(held_out, captioned, [], said)
        truth = {prompt.id: prompt.objects for prompt in prompts}
        wrong = sum(len(one.hallucinated) for one in found.captions)
        return Result(
            suite="playground",
            counts={
                "captions": len(found.captions),
                "hallucinated_captions": sum(bool(one.hallucinated) for one in found.captions),
                "hallucinated_mentions": wrong,
                "questions": len(found.answers),
                "degenerate": sum(bool(one.degenerate) for one in found.captions),
            },
            ratios=found.ratios,
            settings={"temperature": options.temperature},
            details=[{**asdict(one), "objects": list(truth[one.prompt_id])} for one in found.captions]
            + [asdict(one) for one in found.answers],
        )

    return Work(items, finish)


def _chair(directory: Path, options: SuiteOptions) -> Work:
    objects = CocoObjects(options.compat)
    files = [
        path for pattern in ("truth*.json", "instances_*.json", "captions_*.json") for path in directory.glob(pattern)
    ]
    if not files:
        raise InvalidInput(
            f"{directory} has no truth.json and no instances_*.json and captions_*.json of COCO: add one of them",
            reason="NO_TRUTH",
        )
    truth = load_truth(sorted(files), objects)
    lines = list(read_lines(directory / "prompts.jsonl", ["id", "image", "prompt"]))[: options.limit]
    items = [
        EvalItem(_key(line), directory / line.text("image"), line.text("prompt"), options.temperature, scored=True)
        for line in lines
    ]
    images = [image_key(line.name("image_id" if "image_id" in line.row else "id")) for line in lines]

    def finish(answers: Answers) -> Result:
        captioned = [(image, str(answers[item.key]["text"])) for image, item in zip(images, items, strict=True)]
        result = chair_result(captioned, truth, objects, compat=options.compat)
        scores = Ratios.collect(
            (image, {"clip_score": (score or 0.0, float(score is not None))})
            for image, item in zip(images, items, strict=True)
            for score in [answers[item.key]["clip_score"]]
        )
        scored = scores.value("clip_score") is not None
        return result if not scored else _with(result, Ratios(result.ratios.images, {**result.ratios.of, **scores.of}))

    return Work(items, finish)


def _key(line: Line) -> str:
    return f"caption/{line.name('id')}"


def _pope(directory: Path, options: SuiteOptions) -> Work:
    files = sorted([*directory.glob("questions*.jsonl"), *directory.glob("coco_pope_*.json")])
    if not files:
        raise InvalidInput(
            f"{directory} has no questions.jsonl and no coco_pope_*.json: add one of them", reason="NO_QUESTIONS"
        )
    questions: list[Question] = []
    for path in files:
        kind = path.stem.removeprefix("coco_pope_") if len(files) > 1 else ""
        for one in read_questions(path):
            id_ = f"{kind}-{one.id}" if kind else one.id
            questions.append(Question(id_, one.image, one.text, one.yes, kind or one.kind))
    questions = questions[: options.limit]
    items = [
        EvalItem(f"question/{one.id}", _image(directory, one.image), one.text + options.suffix, 0.0)
        for one in questions
    ]

    def finish(answers: Answers) -> Result:
        return pope_result(questions, {one.id: str(answers[f"question/{one.id}"]["text"]) for one in questions})

    return Work(items, finish)


def _amber(directory: Path, options: SuiteOptions) -> Work:
    amber = Amber.load(directory)
    path = directory / "query" / "query_all.json"
    try:
        queries = [(row["id"], row["image"], row["query"]) for row in read_value(path)]
        if not all(isinstance(image, str) and isinstance(query, str) for _, image, query in queries):
            raise TypeError("an image or a query is not text")
        rows = [(int(number), image, query) for number, image, query in queries]
    except (InvalidInput, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is not AMBER's ({type(error).__name__}: {error})", reason="AMBER_DATA") from None
    if options.limit is not None:
        kept = {number for number, _, _ in rows[: options.limit]}
        rows = rows[: options.limit]
        amber = Amber({n: row for n, row in amber.annotations.items() if n in kept}, amber.association, amber.safe)
    generative = set(amber.generative())
    items = [
        EvalItem(str(number), _image(directory, image), query if number in generative else query + options.suffix,
             options.temperature if number in generative else 0.0)
        for number, image, query in rows
    ]  # fmt: skip

    def finish(answers: Answers) -> Result:
        said = {number: str(answers[str(number)]["text"]) for number, _, _ in rows}
        return amber_result(said, amber, similarity=options.similarity, compat=options.compat)

    return Work(items, finish)


def _image(directory: Path, name: str) -> Path:
    """The path of a POPE or AMBER image; if it is missing, the first possible path, for the message."""
    places = [directory, *(root / sub for root in (directory, directory.parent) for sub in ("images", "image"))]
    return next((place / name for place in places if (place / name).is_file()), places[0] / name)


def _with(result: Result, ratios: Ratios) -> Result:
    import dataclasses

    return dataclasses.replace(result, ratios=ratios)


def _candidate(prompt: str, answer: Mapping[str, Any]) -> Response:
    return Response(
        prompt_id=prompt,
        index=0,
        text=answer["text"],
        token_ids=[0] * int(answer["tokens"]),
        finish_reason=answer["finish_reason"],
        score=Score(answer["clip_score"]),
    )
