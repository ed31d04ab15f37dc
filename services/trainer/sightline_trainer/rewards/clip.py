"""ClipReward: how well each text fits its image, from the scorer service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sightline_chassis.errors import InvalidInput
from sightline_scorer.client import AsyncScorerClient

from sightline_trainer.patience import patiently
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Reward as RewardSettings


@dataclass(frozen=True)
class Score:
    """The reward of one text, or why there is none. ``reward`` is the CLIPScore, 100 * max(cosine, 0), to 0.01."""

    reward: float | None
    cosine: float | None = None
    logit: float | None = None
    error: str = ""


class ClipReward:
    """CLIPScore. A text or image that the scorer refuses has no reward; it is never scored 0."""

    def __init__(self, client: AsyncScorerClient, settings: RewardSettings) -> None:
        self.client = client
        self.settings = settings

    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score for each text, in order; equal texts are scored once.

        Raises:
            SightlineError: the scorer stays away, or fails for another reason than the input.
        """
        unique = [text for text in dict.fromkeys(texts) if text.strip()]
        if not unique:
            return [Score(None, error="EMPTY_TEXT") for _ in texts]
        try:
            result = await patiently(
                lambda: self.client.score(
                    prompt.image, unique, model=self.settings.model, timeout=self.settings.timeout_seconds
                )
            )
        except InvalidInput as error:
            return [Score(None, error=error.reason) for _ in texts]
        # The last bits of a score depend on what else was in its batch; which pairs are built must not.
        scores = {
            text: Score(round(float(result.clip_score[i]), 2), float(result.cosine[i]), float(result.logit[i]))
            for i, text in enumerate(unique)
        }
        return [scores.get(text, Score(None, error="EMPTY_TEXT")) for text in texts]
