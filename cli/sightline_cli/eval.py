"""`sightline eval`: metrics of captions and answers, from files or by asking a running sampler.

Exit codes: see `sightline_cli.failures`; an input that can't be used (2) is named with file, line and fix.
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
    Path | None, typer.Option("--json", metavar="OUT", help="Write the result there; - prints JSON and nothing else.")
]
Details = Annotated[bool, typer.Option("--details", help="One entry for each text in the JSON; `compare` needs it.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


class Compat(StrEnum):
    """Whether the official script's slips are kept."""

    MENDED = "mended"
    OFFICIAL = "official"


class AnswerRule(StrEnum):
    """How an answer is read as yes or no."""

    OFFICIAL = "official"
    WORDS = "words"


class Suite(StrEnum):
    """What a sampler can be asked."""

    PLAYGROUND = "playground"
    CHAIR = "chair"
    POPE = "pope"
    AMBER = "amber"


@app.command()
def chair(
    captions: Annotated[Path, typer.Option(help="JSON lines {image_id, caption}.")],
    truth: Annotated[
        list[Path], typer.Option(help="{image_id: [objects]} as JSON, or COCO's instances_*.json and captions_*.json.")
    ],
    image_id_key: Annotated[str, typer.Option(help="Where the image's id stands in a caption's object.")] = "image_id",
    caption_key: Annotated[str, typer.Option(help="Where the caption stands.")] = "caption",
    compat: Annotated[Compat, typer.Option(help="official: keep what the official script misses.")] = Compat.MENDED,
    json: Json = None,
    details: Details = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """CHAIR over COCO's 80 objects: CHAIR_s, CHAIR_i, recall and mean length of captions."""

    def work() -> None:
        from sightline_cli.eval_files import chair as measure

        measure(captions, truth, (image_id_key, caption_key), compat.value, json, details, seed)

    guarded(work, debug, "trainer")


@app.command()
def pope(
    answers: Annotated[Path, typer.Option(help="JSON lines {question_id, question, image, answer}.")],
    questions: Annotated[Path, typer.Option(help="JSON lines {question_id, image, text, label}.")],
    rule: Annotated[AnswerRule, typer.Option(help="How answers are read.")] = AnswerRule.OFFICIAL,
    compat: Annotated[
        Compat, typer.Option(help="official: answers without question_id are paired by position.")
    ] = Compat.MENDED,
    trust_ids: Annotated[
        bool, typer.Option("--trust-ids", help="Take answers that do not say what was asked, by their ids alone.")
    ] = False,
    json: Json = None,
    details: Details = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """POPE: accuracy, precision, recall, F1 and yes-ratio of yes/no answers."""

    def work() -> None:
        from sightline_cli.eval_files import pope as measure

        measure(answers, questions, rule.value, compat.value, trust_ids, json, details, seed)

    guarded(work, debug, "trainer")


@app.command()
def amber(
    answers: Annotated[Path, typer.Option(help="AMBER's JSON list, or JSON lines, of {id, response}.")],
    data: Annotated[Path, typer.Option(help="The AMBER repository's data directory.")],
    similarity: Annotated[
        str, typer.Option(help="exact, spacy (en_core_web_lg) or spacy:MODEL; the official script has spacy.")
    ] = "exact",
    nouns: Annotated[str, typer.Option(help="listed, or nltk as the official script has it.")] = "listed",
    compat: Annotated[Compat, typer.Option(help="official: keep the official script's slips.")] = Compat.MENDED,
    json: Json = None,
    details: Details = False,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """AMBER: CHAIR, Cover, Hal, Cog of responses; accuracy, precision, recall, F1 of answers."""

    def work() -> None:
        from sightline_cli.eval_files import amber as measure

        measure(answers, data, similarity, nouns, compat.value, json, details, seed)

    guarded(work, debug, "trainer")


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(help="A result, written with --json and --details.")],
    other: Annotated[Path, typer.Argument(help="Another one, on the same images.")],
    json: Json = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Two policies on the same images: the change of each metric, with a paired bootstrap interval."""

    def work() -> None:
        from sightline_cli.eval_files import compare as measure

        measure(one, other, json, seed)

    guarded(work, debug, "trainer")


@app.command()
def run(
    sampler: Annotated[str, typer.Option(metavar="ADDR", help="A running sampler, host:port.")],
    suite: Annotated[Suite, typer.Option(help="What to ask.")] = Suite.PLAYGROUND,
    data: Annotated[
        str,
        typer.Option(help="Dataset directory (docs/evaluation.md), or playground:SPLIT?count=N&seed=S."),
    ] = "playground:test?count=500&seed=2",
    scorer: Annotated[
        str | None, typer.Option(metavar="ADDR", help="A running scorer: mean CLIPScore too (playground, chair).")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy; questions are always asked greedily.", min=0.0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples and of the bootstrap.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of a text.", min=1)] = 128,
    in_flight: Annotated[int, typer.Option(help="Requests under way at the same time.", min=1)] = 32,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images or questions.", min=1)] = None,
    compat: Annotated[Compat, typer.Option(help="official: keep the official scripts' slips.")] = Compat.MENDED,
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
        Path | None, typer.Option(help="Where answers are kept; run again to go on. Default: beside OUT.")
    ] = None,
    json: Json = None,
    details: Details = False,
    debug: Debug = False,
) -> None:
    """Ask a running sampler a suite's prompts and questions, and measure its answers. Goes on after a stop."""

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
