"""`clip`: how well each text fits its image, or its images, from the scorer service."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final, Literal

from pydantic import Field
from sightline.errors import InvalidInput
from sightline.scorer import AsyncScorerClient

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term, TermContext, TermPart
from sightline_trainer.sections import RewardService

QUESTION: Final = "question"
"""Name among the terms for the CLIPScore of a question itself."""


class Clip(TermPart):
    """CLIPScore of the text with its image; for several images, their mean or that of one."""

    by: Literal["whole", "sentence"] = Field(
        "whole", description="Score the text as a whole, or sentence by sentence (CSR)."
    )
    pool: Literal["mean", "min", "sum"] = Field(
        "mean", description="How sentence scores are combined; CSR uses the sum, which rewards length."
    )
    images: Literal["mean", "first"] | Annotated[int, Field(ge=0)] = Field(
        "mean",
        description="For a prompt with several images: the mean of the scores with each (mean), or the score with one: "
        "first, or its number from 0.",
    )

    def open(self, context: TermContext) -> Term:
        return ClipTerm(self, ClipScores(context.scorer, context.scoring, images=self.images))


class ClipScores:
    """CLIPScore. A text or image that the scorer refuses has no reward; it is never scored 0.

    Args:
        images: which of a prompt's images to use; see `Clip.images`.
    """

    def __init__(
        self, client: AsyncScorerClient, settings: RewardService, *, images: Literal["mean", "first"] | int = "mean"
    ) -> None:
        self.client = client
        self.settings = settings
        self.images = images

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score for each text, in order; equal texts are scored once.

        Raises:
            SightlineError: the scorer stays unavailable, or fails for another reason than the input.
        """
        unique = [text for text in dict.fromkeys(texts) if text.strip()]
        if not unique:
            return [Score(None, error="EMPTY_TEXT") for _ in texts]
        shown = self._shown(prompt)
        if not shown:
            return [Score(None, error="IMAGE_NOT_THERE") for _ in texts]
        try:
            results = [await self.client.score(image, unique, model=self.settings.model) for image in shown]
        except InvalidInput as error:
            return [Score(None, error=error.reason) for _ in texts]

        def mean(values: Iterable[float]) -> float:
            return fmean(float(value) for value in values)

        # The last bits of a score depend on the rest of its batch; the choice of pairs must not.
        scores = {
            text: Score(
                round(mean(result.clip_score[i] for result in results), 2),
                mean(result.cosine[i] for result in results),
                mean(result.logit[i] for result in results),
            )
            for i, text in enumerate(unique)
        }
        return [scores.get(text, Score(None, error="EMPTY_TEXT")) for text in texts]

    def _shown(self, prompt: Prompt) -> Sequence[Path]:
        if self.images == "mean":
            return prompt.images
        number = 0 if self.images == "first" else self.images
        return prompt.images[number : number + 1]


class ClipTerm:
    """CLIPScore of whole texts, or pooled over sentences; for questions, also that of the question."""

    def __init__(self, settings: Clip, reward: ClipScores) -> None:
        self.settings = settings
        self.reward = reward

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        parts = [
            sentences(each.judged_text) if self.settings.by == "sentence" else [each.judged_text] for each in candidates
        ]
        asked = [each.prompt for each in candidates if each.source == "right_answer"]
        texts = list(dict.fromkeys([text for part in parts for text in part] + asked))
        scores = dict(zip(texts, await self.reward(prompt, texts), strict=True))
        result = []
        for candidate, part in zip(candidates, parts, strict=True):
            score = self._pooled([scores[text] for text in part])
            question = scores.get(candidate.prompt)
            if question is not None and question.reward is not None:
                score = replace(score, terms={QUESTION: question.reward})
            result.append(score)
        return result

    def _pooled(self, scores: Sequence[Score]) -> Score:
        if len(scores) == 1:
            return scores[0]
        values = [score.reward for score in scores if score.reward is not None]
        if len(values) < len(scores) or not values:
            return next((score for score in scores if score.reward is None), Score(None, error="EMPTY_TEXT"))
        total = {"mean": sum(values) / len(values), "min": min(values), "sum": sum(values)}[self.settings.pool]
        return Score(total, sentences=values)


def sentences(text: str) -> list[str]:
    """The sentences of a text; the text itself if it has none."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part.strip(" .!?")] or [text]
