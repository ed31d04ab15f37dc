"""`sightline eval {chair,pope,amber,compare}`: files in, a table or JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rich.console import Console
from sightline.errors import InvalidInput
from sightline_trainer.evaluation.amber import Amber, read_responses
from sightline_trainer.evaluation.captions import read_captions
from sightline_trainer.evaluation.coco import CocoObjects, Compat, load_truth
from sightline_trainer.evaluation.lines import read_value
from sightline_trainer.evaluation.pope import Rule, read_answers, read_questions
from sightline_trainer.evaluation.result import Result, differences_json
from sightline_trainer.evaluation.result import compare as compare_results
from sightline_trainer.evaluation.suites import amber_result, chair_result, pope_result
from sightline_trainer.evaluation.words import (
    ExactSimilarity,
    ListedNouns,
    NltkNouns,
    Nouns,
    Similarity,
    SpacySimilarity,
)

from sightline_cli.eval_output import bars, emit, emit_differences


def chair(
    captions: Path, truth: list[Path], keys: tuple[str, str], compat: str, out: Path | None, details: bool, seed: int
) -> None:
    """CHAIR for a file of captions; `keys` are those of image id and caption."""
    kept = cast(Compat, compat)
    objects = CocoObjects(kept)
    said = read_captions(captions, image_id_key=keys[0], caption_key=keys[1])
    known = load_truth(truth, objects)
    with bars(out) as progress:
        result = chair_result(said, known, objects, compat=kept, progress=progress("reading captions"))
    emit(result, out, details=details, seed=seed)


def pope(
    answers: Path,
    questions: Path,
    rule: str,
    compat: str,
    trust_ids: bool,
    out: Path | None,
    details: bool,
    seed: int,
) -> None:
    """POPE for a file of answers."""
    asked = read_questions(questions)
    given = read_answers(answers, asked, compat, trust_ids=trust_ids)
    result = pope_result(asked, given.by_id, rule=cast(Rule, rule), checked=given.checked)
    emit(result, out, details=details, seed=seed)


def amber(
    answers: Path, data: Path, similarity: str, nouns: str, compat: str, out: Path | None, details: bool, seed: int
) -> None:
    """AMBER for a file of responses."""
    known = Amber.load(data)
    result: Result = amber_result(
        read_responses(answers, known),
        known,
        similarity=similarity_of(similarity),
        nouns=nouns_of(nouns, known),
        compat=cast(Compat, compat),
    )
    emit(result, out, details=details, seed=seed)


def compare(one: Path, other: Path, out: Path | None, seed: int) -> None:
    """The paired differences of two results. Differences other than the policy are reported on stderr."""
    results = [_result(path) for path in (one, other)]
    found = differences_json(compare_results(results[0], results[1], seed=seed))
    if unlike := unlike_settings(*(result.get("settings") for result in results)):
        Console(stderr=True).print(
            f"not only the policy differs: {unlike}", soft_wrap=True, highlight=False, markup=False
        )
    emit_differences(found, out)


def unlike_settings(one: Any, other: Any) -> str:
    """Settings that differ between two results, except the policy's version: "compat mended, official"."""
    sides = [dict(each) if isinstance(each, dict) else {} for each in (one, other)]
    names = sorted({*sides[0], *sides[1]} - {"policy_version"})
    unlike = [name for name in names if sides[0].get(name) != sides[1].get(name)]
    return "; ".join(f"{name} {sides[0].get(name)}, {sides[1].get(name)}" for name in unlike)


def similarity_of(text: str) -> Similarity:
    """The word similarity that `--similarity` names."""
    if text == "exact":
        return ExactSimilarity()
    kind, _, model = text.partition(":")
    if kind != "spacy":
        raise InvalidInput(f"--similarity {text!r}: wanted exact, spacy or spacy:MODEL", reason="OPTION")
    return SpacySimilarity(model or "en_core_web_lg")


def nouns_of(text: str, amber: Amber) -> Nouns:
    """The noun finder that `--nouns` names."""
    if text not in ("listed", "nltk"):
        raise InvalidInput(f"--nouns {text!r}: wanted listed or nltk", reason="OPTION")
    return ListedNouns(amber.words()) if text == "listed" else NltkNouns()


def _result(path: Path) -> dict[str, Any]:
    try:
        value = read_value(path)
    except InvalidInput as error:
        raise InvalidInput(f"{path} is not a result of sightline eval ({error})", reason="RESULT") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} is not a result of sightline eval: name a file that --json wrote", reason="RESULT")
    return value
