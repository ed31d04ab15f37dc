"""`ask`: a language model as a judge: the policy itself, another sampler, or an OpenAI-compatible endpoint.

    VLFeedback (2410.09421)     templates for each aspect, parser: rating; the mean of the ratings 1 to 5
    RLAIF-V (2405.17220)        by: claims, parser: p_yes, pool: rejected; minus the number of claims that are denied
    FineSumFact (2412.10689)    by: sentence, parser: yes_no, or all sentences at once: parser: verdicts
    BalCapRL (2605.07394)       correctness and coverage, two terms, {right: {part: ask, ...}, whole: {part: ask, ...}},
                                and reward.combine: normalised

Each text is judged once, and the answer is stored in the run (`judgements`). An unreadable answer is not a score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator
from sightline.errors import InvalidInput

from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.judgements import Judgements
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.clip import sentences
from sightline_trainer.rewards.term import Term, TermContext, TermPart
from sightline_trainer.speaker.answers import rating, verdicts, yes_or_no
from sightline_trainer.speaker.settings import Speaking
from sightline_trainer.speaker.speaker import Speaker
from sightline_trainer.speaker.template import check_template, filled

FIELDS: Final = ("question", "answer", "piece", "object", "numbered", "objects", "reference")
UNREADABLE: Final = "ANSWER_UNREADABLE"
NOTHING: Final = "NOTHING_TO_JUDGE"
_SPLIT: Final = (
    "Split the text below into single claims about the picture, one a line, each a whole sentence that can be "
    "understood alone. Write the claims and nothing else.\n\nText: {answer}\nClaims:"
)
_BULLET: Final = re.compile(r"^\s*(?:[-*\u2022]|\d+[.):])\s*")


class Ask(TermPart, Speaking):
    """A language model's rating of a text."""

    templates: dict[str, str] = Field(
        min_length=1,
        description="Questions by aspect; the value is the mean over aspects. {question}, {answer}, {piece} or "
        "{object} (see by), {numbered} (all sentences, for verdicts), {objects} and {reference} (from the dataset).",
    )
    by: Literal["whole", "sentence", "claims", "objects"] = Field(
        "whole",
        description=(
            "What is judged: the whole text, each sentence, each claim (split by the same model), or "
            "each object of vocabulary.json that it names."
        ),
    )
    parser: Literal["rating", "yes_no", "p_yes", "verdicts"] = Field(
        "rating",
        description=(
            "Form of the answer: a rating from 1 to 5; yes (1) or no (0); the probability of yes; a yes"
            " or no for each numbered sentence."
        ),
    )
    pool: Literal["mean", "min", "sum", "rejected"] = Field(
        "mean", description="How the pieces' values are combined; rejected: minus the number of pieces below 0.5."
    )
    split: str = Field(_SPLIT, description="Prompt that lists the claims, one per line (by: claims).")

    @model_validator(mode="after")
    def _askable(self) -> Self:
        for template in (*self.templates.values(), self.split):
            check_template(template, FIELDS)
        if self.parser == "verdicts" and self.by != "whole":
            raise ValueError("parser: verdicts judges all sentences at once; leave by at whole")
        if self.pool == "rejected" and self.parser == "rating":
            raise ValueError("pool: rejected counts answers of no; a rating has none")
        return self

    def open(self, context: TermContext) -> Term:
        vocabulary = Vocabulary.load(context.dataset / "vocabulary.json") if self.by == "objects" else None
        return AskTerm(self, context.speaker(self), context.judgements(self), vocabulary)


class AskTerm:
    """Asks for a rating of each piece, for each aspect."""

    def __init__(self, settings: Ask, speaker: Speaker, kept: Judgements, vocabulary: Vocabulary | None) -> None:
        self.settings = settings
        self.speaker = speaker
        self.kept = kept
        self.vocabulary = vocabulary

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        return [await self._one(prompt, candidate, version) for candidate in candidates]

    async def _one(self, prompt: Prompt, candidate: Response, version: int) -> Score:
        text = candidate.judged_text.strip()
        if not text:
            return Score(None, error="EMPTY_TEXT")
        try:
            pieces = await self._pieces(prompt, text, version)
            columns = [await self._values(prompt, candidate, piece, version) for piece in pieces]
        except InvalidInput as error:  # the judge refuses this text, not all of the run's
            return Score(None, error=error.reason)
        if any(column is None for column in columns):
            return Score(None, error=UNREADABLE)
        values = [value for column in columns if column is not None for value in column]
        return self._pooled(values)

    def _pooled(self, values: Sequence[float]) -> Score:
        if self.settings.pool == "rejected":
            return Score(-float(sum(value < 0.5 for value in values)), sentences=list(values))
        if not values:
            return Score(None, error=NOTHING)
        pooled = {"mean": fmean(values), "min": min(values), "sum": sum(values)}[self.settings.pool]
        return Score(pooled, sentences=list(values) if len(values) > 1 else [])

    async def _pieces(self, prompt: Prompt, text: str, version: int) -> list[str]:
        if self.settings.by == "sentence":
            return sentences(text)
        if self.vocabulary is not None:
            return list(dict.fromkeys(self.vocabulary.mentions(text)))
        if self.settings.by == "claims":
            asked = filled(self.settings.split, {"answer": text})
            said = await self._said(prompt, asked, version)
            return [line for each in said.splitlines() if (line := _BULLET.sub("", each).strip())]
        return [text]

    async def _values(self, prompt: Prompt, candidate: Response, piece: str, version: int) -> list[float] | None:
        """Values of a piece (one, or one per sentence for verdicts): means over aspects; None if one can't be read."""
        said = sentences(candidate.judged_text)
        known = {
            "question": candidate.prompt or prompt.prompt,
            "answer": candidate.judged_text,
            "piece": piece,
            "object": piece,
            "numbered": "\n".join(f"{number}. {each}" for number, each in enumerate(said, 1)),
            "objects": ", ".join(prompt.objects),
            "reference": prompt.reference,
        }
        columns = []
        for template in self.settings.templates.values():
            values = await self._mark(prompt, filled(template, known), len(said), version)
            if values is None:
                return None
            columns.append(values)
        return [fmean(column) for column in zip(*columns, strict=True)]

    async def _mark(self, prompt: Prompt, question: str, count: int, version: int) -> list[float] | None:
        parser = self.settings.parser
        if parser == "p_yes":
            identity = f"{self.speaker.identity(version)}, P(yes)"
            value = await self.kept(
                prompt, identity, question, lambda: self.speaker.yes(prompt, question, version=version)
            )
            return None if value is None else [float(value)]
        said = await self._said(prompt, question, version)
        if parser == "verdicts":
            found = verdicts(said, count)
            return None if found is None else [float(each) for each in found]
        value = rating(said) if parser == "rating" else yes_or_no(said)
        return None if value is None else [float(value)]

    async def _said(self, prompt: Prompt, question: str, version: int) -> str:
        settings, seed = self.settings, prompt.seed(-7)
        identity = f"{self.speaker.identity(version)}, T {settings.temperature}, p {settings.top_p}"
        said: Any = await self.kept(
            prompt,
            f"{identity}, {settings.max_tokens} tokens, picture {settings.image}",
            question,
            lambda: self.speaker(prompt, question, seed, version=version),
        )
        return str(said)
