"""`sightline eval run`: ask a running sampler a suite's questions and measure its answers."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

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
    answers: Path | None


def run(ask: EvalRunOptions, out: Path | None, details: bool) -> None:
    """Ask what is not answered yet, measure, show."""
    with tempfile.TemporaryDirectory(prefix="sightline-eval-") as cache:
        directory = Path(resolve(ask.data, Path(cache)))
        options = SuiteOptions(
            temperature=ask.temperature,
            limit=ask.limit,
            compat=cast(Compat, ask.compat),
            suffix=ask.suffix,
            similarity=similarity_of(ask.similarity),
        )
        todo = work(cast(Suite, ask.suite), directory, options)
        asker = Asker(
            sampler=ask.sampler,
            scorer=ask.scorer,
            seed=ask.seed,
            max_tokens=ask.max_tokens,
            in_flight=ask.in_flight,
            credentials=given().arguments(),
        )
        identity = {
            "suite": ask.suite,
            "data": ask.data,
            "temperature": ask.temperature,
            "suffix": ask.suffix,
            "scored": ask.scorer is not None,
        }
        kept = _answers(ask, out)
        try:
            with bars(out) as progress:
                said, version = asyncio.run(asker.ask(todo.items, kept, identity, progress(f"asking {ask.suite}")))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*([] if kept is None else ["run the same command again to go on"])) from None
        result = todo.finish(said)
        settings = {"policy_version": version, "data": ask.data, "seed": ask.seed, **result.settings}
        emit(dataclasses.replace(result, settings=settings), out, details=details, seed=ask.seed)


def _answers(ask: EvalRunOptions, out: Path | None) -> Path | None:
    """Where answers are kept: as named, else beside the result; nowhere if that is not written."""
    if ask.answers is not None or out is None or str(out) == "-":
        return ask.answers
    return out.with_suffix(".answers.jsonl")
