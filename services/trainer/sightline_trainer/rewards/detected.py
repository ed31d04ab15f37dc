"""`detected`: objects that a text names and a detector does not find, as a cost (SENTINEL's signal, ICCV 2025).

An object is present if its score is at least `there`, and absent if it is below `absent`. The score is the CLIPScore of
`template` with the object, or a detector's (`detectors`). Between the two bounds the object is unknown and does not
count, as when SENTINEL's two detectors disagree. The value is minus the number of distinct objects that are named but
absent (times `cost`); with `cover`, the number of those named and present is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator
from sightline.errors import InvalidInput

from sightline_trainer.detector import Detector
from sightline_trainer.detectors import HttpDetector, ScorerDetector
from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.judgements import Judgements
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.clip import ClipScores
from sightline_trainer.rewards.term import Term, TermContext, TermPart
from sightline_trainer.speaker.template import check_template
from sightline_trainer.web_service import Url


class Detected(TermPart):
    """Objects named against objects that a detector finds."""

    by: Literal["scorer", "http"] = Field("scorer", description="The detector that finds objects.")
    template: str = Field("a photo of a {object}.", description="What the scorer compares with the picture.")
    there: float = Field(description="Minimum score of a present object: a CLIPScore, or the detector's 0 to 1.")
    absent: float | None = Field(
        None,
        description=(
            "Objects below this score are absent; null: the same bound. Between the two bounds an "
            "object counts as unknown."
        ),
    )
    url: Url | None = Field(None, description="The detector's address (by: http).")
    cover: bool = Field(False, description="Also count named objects that are present; false: count only absent ones.")
    cost: float = Field(1.0, gt=0.0, description="Cost of an object that is named but absent.")
    timeout_seconds: float = Field(60.0, gt=0.0, description="Deadline of one picture at the detector.")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        check_template(self.template, ["object"])
        if self.by == "http" and not self.url:
            raise ValueError("by: http needs the detector's url")
        if self.absent is not None and self.absent > self.there:
            raise ValueError(f"absent is {self.absent:g}, over there, {self.there:g}")
        return self

    def open(self, context: TermContext) -> Term:
        vocabulary = Vocabulary.load(context.dataset / "vocabulary.json")
        if self.by == "http":
            detector: Detector = HttpDetector(self.url or "", self.timeout_seconds)
            context.closing.push_async_callback(detector.close)
        else:
            detector = ScorerDetector(self.template, ClipScores(context.scorer, context.scoring))
        return DetectedTerm(self, vocabulary, detector, context.judgements(self))


class DetectedTerm:
    """Counts. A picture is checked once for the whole vocabulary; an object without a score is unknown."""

    def __init__(self, settings: Detected, vocabulary: Vocabulary, detector: Detector, kept: Judgements) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self.detector = detector
        self.kept = kept
        self._objects = sorted(vocabulary.objects)

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        async def look() -> dict[str, float]:
            return dict(await self.detector(prompt, self._objects))

        try:
            scores = await self.kept(prompt, self.detector.identity, ", ".join(self._objects), look)
        except InvalidInput as error:
            return [Score(None, error=error.reason) for _ in candidates]
        return [self._value(candidate.judged_text, scores) for candidate in candidates]

    def _value(self, text: str, scores: Mapping[str, float]) -> Score:
        settings = self.settings
        if not text.strip():
            return Score(None, error="EMPTY_TEXT")
        bound = settings.there if settings.absent is None else settings.absent
        named = set(self.vocabulary.mentions(text))
        wrong = sum(name in scores and scores[name] < bound for name in named)
        right = sum(name in scores and scores[name] >= settings.there for name in named) if settings.cover else 0
        return Score(right - settings.cost * wrong)
