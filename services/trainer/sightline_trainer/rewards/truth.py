"""`truth`: the dataset's truth about the image as a reward. An oracle: an upper bound for methods, not a method.

The value is 100 * F1 of the mentioned objects against the present ones:
2 * right / (2 * right + wrong + missed).
"""

from __future__ import annotations

from collections.abc import Sequence

from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term, TermContext, TermPart


class Truth(TermPart):
    """Named objects against present objects (oracle)."""

    def open(self, context: TermContext) -> Term:
        return TruthTerm(Vocabulary.load(context.dataset / "vocabulary.json"))


class TruthTerm:
    """Reads `objects` of the prompts; an image without truth has no value."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        there = set(prompt.objects)
        if not there:
            return [Score(None, error="TRUTH_UNKNOWN") for _ in candidates]
        result = []
        for candidate in candidates:
            said = set(self.vocabulary.mentions(candidate.judged_text))
            right = len(said & there)
            result.append(Score(200.0 * right / (2 * right + len(said - there) + len(there - said))))
        return result
