"""Judge: one reward for each candidate from all terms of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Final, Literal

from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term

Combine = Literal["sum", "rank", "normalised"]


class Judge:
    """Combines terms.

    Args:
        terms: each with its weight, by name.
        combine: how the terms are added:
            `sum`: weight * value.
            `rank`: weight * rank among the candidates of one prompt, from 0 for the lowest value to 100 for the
                highest. Equal values share their mean rank.
            `normalised`: weight * (value - mean) / standard deviation, both among the candidates of one prompt, so that
                terms of different scales count by their weights. This is GDPO's (Liu et al. 2026, arXiv 2601.05242),
                which BalCapRL applies to captions. GDPO's last step, over the batch, is left out: it does not change
                which of a prompt's candidates is better.
    """

    def __init__(self, terms: Mapping[str, tuple[Term, float]], combine: Combine) -> None:
        self.terms = terms
        self.combine = combine

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        """One score for each candidate, in order; a candidate without a value for any term has no reward.

        Raises:
            SightlineError: a service stays unavailable.
        """
        values = {name: await term(prompt, candidates, version=version) for name, (term, _) in self.terms.items()}
        scores = [_merged({name: column[i] for name, column in values.items()}) for i in range(len(candidates))]
        for asked in dict.fromkeys(candidate.prompt for candidate in candidates):
            group = [i for i, candidate in enumerate(candidates) if candidate.prompt == asked and not scores[i].error]
            rewards = [0.0] * len(group)
            for name, (_, weight) in self.terms.items():
                column = [scores[i].terms[name] for i in group]
                for place, value in enumerate(COMBINED[self.combine](column)):
                    rewards[place] += weight * value
            for i, reward in zip(group, rewards, strict=True):
                scores[i] = replace(scores[i], reward=round(reward, 2))
        return scores


def _merged(columns: Mapping[str, Score]) -> Score:
    terms: dict[str, float] = {}
    cosine = logit = None
    sentences: list[float] = []
    error = ""
    for name, score in columns.items():
        terms.update(score.terms)
        if score.reward is None:
            error = error or score.error or "NO_VALUE"
        else:
            terms[name] = score.reward
        sentences = score.sentences or sentences
        cosine, logit = (score.cosine, score.logit) if score.cosine is not None else (cosine, logit)
    return Score(None, cosine, logit, error, terms, sentences)


def ranks(values: Sequence[float]) -> list[float]:
    """0 for the lowest, 100 for the highest; equal values share the mean of their ranks; one value alone is 50."""
    if len(values) < 2:
        return [50.0] * len(values)
    return [
        100.0
        * (sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2)
        / (len(values) - 1)
        for value in values
    ]


def normalised(values: Sequence[float]) -> list[float]:
    """(value - mean) / standard deviation of the population; all 0 if the values are equal."""
    spread = pstdev(values) if values else 0.0
    if spread <= 1e-9 * max(map(abs, values), default=0.0):
        return [0.0] * len(values)
    mean = fmean(values)
    return [(value - mean) / spread for value in values]


COMBINED: Final[Mapping[Combine, Callable[[Sequence[float]], Sequence[float]]]] = {
    "sum": lambda values: values,
    "rank": ranks,
    "normalised": normalised,
}
"""How a term's values are transformed among a prompt's candidates, before they are weighted and added."""
