"""`question_answer`: questions about the image with a right and a wrong answer (CLIP-DPO's 50 K of 750 K pairs).

They come from `questions.jsonl` beside the prompts, one object a line:

    id                    the prompt's
    text, right, wrong    the question and its two answers
    right_statement, wrong_statement
                          what each answer says about the picture, for the scorer; without them `declared` turns the
                          question into a statement, as CLIP-DPO does "with a regex"
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from sightline.errors import InvalidInput

from sightline_trainer.candidates.declared import declared
from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.pools.lines import bounded_lines
from sightline_trainer.pools.pool import id_digest
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.row_gate import RowGate


class QuestionAnswer(CandidatePart):
    """Questions with right and wrong answers, from the dataset."""

    writes: ClassVar[tuple[str, ...]] = ("right_answer", "wrong_answer")

    share: float = Field(
        1 / 15, gt=0.0, le=1.0, description="Share of the prompts that get a question (CLIP-DPO: 50 K of 750 K pairs)."
    )

    def open(self, context: SourceContext) -> Source:
        return QuestionSource(self.share, context.seed, context.gate, context.dataset / "questions.jsonl")


class QuestionSource:
    """Two candidates, `right_answer` and `wrong_answer`, for some of the prompts."""

    def __init__(self, share: float, seed: int, gate: RowGate, path: Path) -> None:
        self.share = share
        self.seed = seed
        self.gate = gate
        self.questions = QuestionIndex(path)

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        drawn = Random(prompt.seed(self.seed, ask.iteration, -4))  # noqa: S311 - a draw, no secret
        if drawn.random() >= self.share:
            return []
        rows = self.questions.of(prompt.id)
        if not rows:
            return []
        row = drawn.choice(rows)
        return [
            unsampled(
                self.gate,
                prompt,
                row["text"],
                row[side],
                index=len(ask.made) + number,
                source=f"{side}_answer",
                statement=row.get(f"{side}_statement") or declared(row["text"], row[side]),
            )
            for number, side in enumerate(("right", "wrong"))
        ]


class QuestionIndex:
    """The questions of a file by prompt id; 16 bytes each in memory.

    Raises:
        InvalidInput: the file does not exist, or a line is not a question with two answers.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InvalidInput(
                f"no {path}: candidates.question_answer needs the dataset's questions; leave that part out, or write "
                'lines {"id": ..., "text": ..., "right": ..., "wrong": ...}',
                reason="NO_QUESTIONS",
            )
        self.path = path
        digests, places = array("Q"), array("q")
        with path.open("rb") as file:
            for number, start, _, line in bounded_lines(file):
                if line is None:
                    raise InvalidInput(f"{path}, line {number}: the line is too long", reason="LINE_TOO_LONG")
                if line.strip():
                    digests.append(id_digest(str(self._row(line, number)["id"])))
                    places.append(start)
        known = np.array(digests, np.uint64)
        order = np.argsort(known, kind="stable")
        self._digests, self._places = known[order], np.array(places, np.int64)[order]

    def of(self, id_: str) -> list[dict[str, Any]]:
        """The questions about one prompt's image, in file order."""
        digest = np.uint64(id_digest(id_))
        first, last = np.searchsorted(self._digests, digest), np.searchsorted(self._digests, digest, side="right")
        rows = []
        with self.path.open("rb") as file:
            for place in sorted(self._places[first:last].tolist()):
                file.seek(place)
                rows.append(self._row(file.readline(), 0))
        return rows

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if missing := [key for key in ("id", "text", "right", "wrong") if not row.get(key)]:
                raise KeyError(", ".join(missing))
            if wrong := [key for key in ("text", "right", "wrong") if not isinstance(row[key], str)]:
                raise TypeError(f"{', '.join(wrong)} must be texts")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidInput(
                f"{self.path}, line {number}: needs an object with id, text, right and wrong ({error})",
                reason="DATASET_LINE",
            ) from error
        return dict(row)
