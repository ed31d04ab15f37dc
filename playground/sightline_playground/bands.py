"""The tolerance of every number in the model card: the band for a newly made playground.

Bands are written by hand, never by `make`, so new weights do not move them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Band:
    """A closed interval and what is measured in it."""

    low: float
    high: float
    what: str

    def holds(self, value: float) -> bool:
        """Whether the value is within the band."""
        return self.low <= value <= self.high


BANDS: Final[dict[str, Band]] = {
    "clip_added_accuracy": Band(0.95, 0.998, "scorer prefers the true caption to one with a companion added"),
    "clip_added_gap_p50": Band(1.5, 8, "CLIPScore points between those two, median"),
    "clip_dropped_accuracy": Band(0.9, 1, "scorer prefers the true caption to the one with an object left out"),
    "clip_dropped_gap_p50": Band(1.5, 12, "CLIPScore points between those two, median"),
    "clip_other_accuracy": Band(0.97, 1, "scorer prefers the true caption to another scene's"),
    "sampled_chair_s": Band(0.42, 0.62, "sampled captions with a hallucinated object"),
    "sampled_chair_i": Band(0.08, 0.3, "mentioned objects that are hallucinated, sampled"),
    "sampled_cover": Band(0.85, 0.97, "true objects mentioned, sampled"),
    "sampled_mean_tokens": Band(20, 32, "tokens of a sampled caption"),
    "greedy_chair_s": Band(0, 0.2, "greedy captions with a hallucinated object"),
    "greedy_cover": Band(0.93, 1, "true objects mentioned, greedy"),
}


SKILLED_BANDS: Final[dict[str, Band]] = {
    "rate_help_accuracy": Band(0.45, 1, "right marks from 1 to 5 for helpfulness"),
    "rate_faith_accuracy": Band(0.7, 1, "right marks from 1 to 5 for faithfulness"),
    "rate_order": Band(0.85, 1, "a true caption has a higher mark than the same with a companion added"),
    "answer_random_accuracy": Band(0.75, 1, "right answers about any object"),
    "answer_adversarial_accuracy": Band(0.8, 1, "right answers about companions"),
    "answer_claim_accuracy": Band(0.72, 1, "right answers about sentences"),
    "improve_chair_s": Band(0, 0.3, "improved answers with a hallucinated object"),
    "improve_cover": Band(0.8, 1, "true objects that improved answers mention"),
    "improve_better": Band(0.7, 1, "answers with errors whose objects are nearer to the truth afterwards"),
    "ask_fits": Band(0.3, 1, "questions about what is in the picture"),
    "describe_chair_s": Band(0.35, 0.7, "captions with a hallucinated object, by the same prior"),
    "told_chair_s": Band(0, 0.6, "the same when the prompt names the objects"),
}


def outside(numbers: dict[str, float], bands: dict[str, Band] = BANDS) -> list[str]:
    """One line for each number that is missing or out of its band; empty when all is well."""
    complaints = []
    for name, band in bands.items():
        value = numbers.get(name)
        if value is None:
            complaints.append(f"{name} was not measured")
        elif not band.holds(value):
            complaints.append(f"{name} is {value:.4g}, outside {band.low:g} .. {band.high:g} ({band.what})")
    return complaints
