"""`sightline eval run`: ask a running sampler a suite's questions and measure its answers."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError
from sightline.errors import InvalidInput
from sightline_chassis.yaml_text import load_yaml
from sightline_trainer.decoder_options import DecoderOptions
from sightline_trainer.decoding_settings import Decoding
from sightline_trainer.evaluation.asking import Asker
from sightline_trainer.evaluation.coco import Compat
from sightline_trainer.evaluation.datasets import Suite, SuiteOptions, work

from sightline_cli.credentials import given
from sightline_cli.datasets import resolve
from sightline_cli.eval_files import similarity_of
from sightline_cli.eval_output import bars, emit


@dataclass(frozen=True)
class EvalRunOptions:
    """The command's options."""

    sampler: str
    scorer: str | None
    suite: str
    data: str
    temperature: float
    seed: int
    max_tokens: int
    in_flight: int
    limit: int | None
    compat: str
    similarity: str
    suffix: str
    decoding: str
    answers: Path | None


def run(ask: EvalRunOptions, out: Path | None, details: bool) -> None:
    """Ask the questions without an answer, measure, show."""
    with tempfile.TemporaryDirectory(prefix="sightline-eval-") as cache:
        directory = Path(resolve(ask.data, Path(cache)))
        options = SuiteOptions(
            temperature=ask.temperature,
            limit=ask.limit,
            compat=cast(Compat, ask.compat),
            suffix=ask.suffix,
            similarity=similarity_of(ask.similarity),
        )
        decoding = _decoding(ask.decoding)
        todo = work(cast(Suite, ask.suite), directory, options)
        asker = Asker(
            sampler=ask.sampler,
            scorer=ask.scorer,
            seed=ask.seed,
            max_tokens=ask.max_tokens,
            in_flight=ask.in_flight,
            credentials=given().arguments(),
            decoder=None if decoding.plain else DecoderOptions(decoding, ask.seed),
        )
        identity = {
            "suite": ask.suite,
            "data": ask.data,
            "temperature": ask.temperature,
            "suffix": ask.suffix,
            "scored": ask.scorer is not None,
            **({} if decoding.plain else {"decoding": decoding.model_dump(mode="json", exclude_none=True)}),
        }
        kept = _answers(ask, out)
        try:
            with bars(out) as progress:
                said, version = asyncio.run(asker.ask(todo.items, kept, identity, progress(f"asking {ask.suite}")))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*([] if kept is None else ["run the same command again to continue"])) from None
        result = todo.finish(said)
        settings = {"policy_version": version, "data": ask.data, "seed": ask.seed, **result.settings}
        emit(dataclasses.replace(result, settings=settings), out, details=details, seed=ask.seed)


def _decoding(text: str) -> Decoding:
    """Read it as a recipe's evaluation.decoding.

    Raises:
        InvalidInput: it can't be read, or needs more than a sampler.
    """
    try:
        found = Decoding.model_validate(load_yaml(text) if text else {})
    except (ValueError, yaml.YAMLError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InvalidInput(f"--decoding {text!r:.200}: {why}", reason="BAD_DECODING") from None
    other = found.guidance.prompted if found.guidance is not None else None
    if found.beams is not None or (other is not None and "{objects}" in other.template):
        raise InvalidInput(
            "--decoding takes no beams, and no template with {objects}: only a recipe supports those",
            reason="BAD_DECODING",
        )
    return found


def _answers(ask: EvalRunOptions, out: Path | None) -> Path | None:
    """The file for the answers: the named one, or one beside the result; None if no result is written."""
    if ask.answers is not None or out is None or str(out) == "-":
        return ask.answers
    return out.with_suffix(".answers.jsonl")
