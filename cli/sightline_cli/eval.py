"""`sightline eval`: metrics of captions and answers, from files or by asking a running sampler.

Exit codes: see `sightline_cli.failures`; the message for an unusable input (2) names file, line and fix.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sightline_cli.failures import guarded

app = typer.Typer(
    help="Measure hallucination and coverage: CHAIR, POPE, AMBER, and the playground's exact truth.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[
    Path | None, typer.Option("--json", metavar="OUT", help="Write the result to this file; - prints only JSON.")
]
Details = Annotated[bool, typer.Option("--details", help="Add an entry for each text to the JSON; `compare` needs it.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


class Compat(StrEnum):
    """Whether to repeat the official script's mistakes."""

    MENDED = "mended"
    OFFICIAL = "official"


class AnswerRule(StrEnum):
    """How to read an answer as yes or no."""

    OFFICIAL = "official"
    WORDS = "words"


class Suite(StrEnum):
    """The suites that a sampler can be asked."""

    PLAYGROUND = "playground"
    CHAIR = "chair"
    POPE = "pope"
    AMBER = "amber"


@app.command()
def chair(
    captions: Annotated[Path, typer.Option(help="JSON lines {image_id, caption}.")],
    truth: Annotated[
        list[Path],
        typer.Option(help="{image_id: list of objects} as JSON, or COCO's instances_*.json and captions_*.json."),
    ],
    image_id_key: Annotated[str, typer.Option(help="Key of the image's id in a caption's object.")] = "image_id",
    caption_key: Annotated[str, typer.Option(help="Key of the caption.")] = "caption",
    compat: Annotated[Compat, typer.Option(help="official: repeat the official script's mistakes.")] = Compat.MENDED,
    json: Json = None,
    details: Details = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Measure CHAIR over COCO's 80 objects: CHAIR_s, CHAIR_i, recall and mean length of captions."""

    def work() -> None:
        from sightline_cli.eval_files import chair as measure

        measure(captions, truth, (image_id_key, caption_key), compat.value, json, details, seed)

    guarded(work, debug, "trainer")


@app.command()
def pope(
    answers: Annotated[Path, typer.Option(help="JSON lines {question_id, question, image, answer}.")],
    questions: Annotated[Path, typer.Option(help="JSON lines {question_id, image, text, label}.")],
    rule: Annotated[AnswerRule, typer.Option(help="Rule to read an answer.")] = AnswerRule.OFFICIAL,
    compat: Annotated[
        Compat, typer.Option(help="official: pair answers without question_id by position.")
    ] = Compat.MENDED,
    trust_ids: Annotated[
        bool, typer.Option("--trust-ids", help="Accept answers without the question's text; match them by id only.")
    ] = False,
    json: Json = None,
    details: Details = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Measure POPE: accuracy, precision, recall, F1 and yes-ratio of yes/no answers."""

    def work() -> None:
        from sightline_cli.eval_files import pope as measure

        measure(answers, questions, rule.value, compat.value, trust_ids, json, details, seed)

    guarded(work, debug, "trainer")


@app.command()
def amber(
    answers: Annotated[Path, typer.Option(help="AMBER's JSON list, or JSON lines, of {id, response}.")],
    data: Annotated[Path, typer.Option(help="The AMBER repository's data directory.")],
    similarity: Annotated[
        str, typer.Option(help="exact, spacy (en_core_web_lg) or spacy:MODEL; the official script uses spacy.")
    ] = "exact",
    nouns: Annotated[str, typer.Option(help="listed, or nltk as in the official script.")] = "listed",
    compat: Annotated[Compat, typer.Option(help="official: repeat the official script's mistakes.")] = Compat.MENDED,
    json: Json = None,
    details: Details = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Measure AMBER: CHAIR, Cover, Hal, Cog of responses; accuracy, precision, recall, F1 of answers."""

    def work() -> None:
        from sightline_cli.eval_files import amber as measure

        measure(answers, data, similarity, nouns, compat.value, json, details, seed)

    guarded(work, debug, "trainer")


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(help="A result that was written with --json and --details.")],
    other: Annotated[Path, typer.Argument(help="Another result, on the same images.")],
    json: Json = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Compare two policies on the same images: the change of each metric with a paired bootstrap interval."""

    def work() -> None:
        from sightline_cli.eval_files import compare as measure

        measure(one, other, json, seed)

    guarded(work, debug, "trainer")


@app.command()
def run(
    sampler: Annotated[str, typer.Option(metavar="ADDR", help="A running sampler, host:port.")],
    suite: Annotated[Suite, typer.Option(help="Suite to run.")] = Suite.PLAYGROUND,
    data: Annotated[
        str,
        typer.Option(help="Dataset directory (docs/evaluation.md), or playground:SPLIT?count=N&seed=S."),
    ] = "playground:test?count=500&seed=2",
    scorer: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="A running scorer, to add the mean CLIPScore (playground, chair)."),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            help="Sampling temperature of captions; 0: greedy. Answers to questions are always greedy.", min=0.0
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples and of the bootstrap.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Maximum new tokens of a text.", min=1)] = 128,
    in_flight: Annotated[int, typer.Option(help="Number of requests in flight.", min=1)] = 32,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many of the first images or questions.", min=1)
    ] = None,
    compat: Annotated[Compat, typer.Option(help="official: repeat the official scripts' mistakes.")] = Compat.MENDED,
    similarity: Annotated[str, typer.Option(help="AMBER's: exact, spacy or spacy:MODEL.")] = "exact",
    suffix: Annotated[str, typer.Option(help='Appended to every question, such as " Answer with yes or no."')] = "",
    decoding: Annotated[
        str,
        typer.Option(
            metavar="YAML",
            help="As a recipe's evaluation.decoding: '{guidance: {contrast: {alpha: 0.5, distortion: {blank: {}}}}}'.",
        ),
    ] = "",
    answers: Annotated[
        Path | None, typer.Option(help="File for the answers; run again to resume. Default: beside OUT.")
    ] = None,
    json: Json = None,
    details: Details = False,
    debug: Debug = False,
) -> None:
    """Run a suite's prompts and questions on a running sampler and measure the answers. Resumes after a stop."""

    def work() -> None:
        from sightline_cli.eval_run import EvalRunOptions
        from sightline_cli.eval_run import run as ask

        asked = EvalRunOptions(
            sampler=sampler,
            scorer=scorer,
            suite=suite.value,
            data=data,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            in_flight=in_flight,
            limit=limit,
            compat=compat.value,
            similarity=similarity,
            suffix=suffix,
            decoding=decoding,
            answers=answers,
        )
        ask(asked, json, details)

    guarded(work, debug, "trainer")
