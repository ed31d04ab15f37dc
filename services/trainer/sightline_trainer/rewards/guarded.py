"""Guards third-party terms: a failure is never a number.

If a term raises, returns the wrong number of values, None, NaN, an infinity or something other than a number, there is
no score: the candidate has no reward, and `scores/*.parquet` says why. A service that stays unavailable (a
SightlineError) ends the run as usual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Final

from sightline.errors import SightlineError

from sightline_trainer.open_parts import Failures
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term

RAISED: Final = "TERM_RAISED"
COUNT: Final = "TERM_COUNT"
NO_NUMBER: Final = "TERM_NO_NUMBER"
NO_MARK: Final = "NO_MARK"


_MEANING: Final = {
    COUNT: "did not give one value for each text",
    NO_NUMBER: "gave no list, or a value in it that is not a finite number",
}
"""What a function did, by the error of its scores."""


class Guarded:
    """A term whose failures are not scores."""

    def __init__(self, name: str, term: Term) -> None:
        self.name = name
        self.term = term
        self._failures = Failures(f"the term {name}")

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        try:
            scores = list(await self.term(prompt, candidates, version=version))
        except SightlineError:
            raise
        except (Exception, SystemExit):
            self._failures.tell(RAISED, f"raised for prompt {prompt.id}: no score", traceback=True)
            return [Score(None, error=RAISED) for _ in candidates]
        if len(scores) != len(candidates):
            self._failures.tell(COUNT, f"gave {len(scores)} scores for {len(candidates)} candidates: no score")
            return [Score(None, error=COUNT) for _ in candidates]
        return [self._checked(score) for score in scores]

    def _checked(self, score: Any) -> Score:
        if not isinstance(score, Score):
            self._failures.tell(NO_NUMBER, f"gave {score!r:.80}, which is not a Score: no score")
            return Score(None, error=NO_NUMBER)
        if score.reward is None:
            if score.error in _MEANING:
                self._failures.tell(score.error, f"{_MEANING[score.error]}: no score")
            return score if score.error else replace(score, error=NO_MARK)
        mark = number(score.reward)
        if mark.reward is None:
            self._failures.tell(NO_NUMBER, f"gave {score.reward!r:.80}, which is not a finite number: no score")
        return replace(score, reward=mark.reward, error=mark.error)


def numbers(values: Any, count: int) -> list[Score]:
    """A score for each value of a function's result; with the wrong number of values, no candidate gets a score."""
    if values is None:
        return [Score(None, error=NO_MARK) for _ in range(count)]
    try:
        if isinstance(values, str | bytes | Mapping | AbstractSet):  # their items are not in the candidates' order
            raise TypeError
        found = list(values)
    except TypeError:
        return [Score(None, error=NO_NUMBER) for _ in range(count)]
    if len(found) != count:
        return [Score(None, error=COUNT) for _ in range(count)]
    return [number(value) for value in found]


def number(value: Any) -> Score:
    """A value as a score; None unless it is a finite number. Numbers of NumPy and torch count, texts do not."""
    if value is None:
        return Score(None, error=NO_MARK)
    try:
        mark = math.nan if isinstance(value, str | bytes) else float(value)
    except Exception:  # a foreign object may raise anything when it is converted
        mark = math.nan
    return Score(mark) if math.isfinite(mark) else Score(None, error=NO_NUMBER)
