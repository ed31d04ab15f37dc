"""Hallucination metrics, exact on scenes (CHAIR: Rohrbach et al. 2018, "Object Hallucination in Image Captioning")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sightline_playground.captions import mentioned
from sightline_playground.scenes import Scene


@dataclass(frozen=True)
class CaptionMetrics:
    """How well captions fit their scenes; all values except mean_tokens are fractions."""

    chair_s: float
    """Share of captions that mention an object which is not in the picture."""
    chair_i: float
    """Share of mentioned objects (each counted once per caption) that are not in the picture; 0 without mentions."""
    cover: float
    """Share of true objects that are mentioned, mean over the captions."""
    mean_tokens: float
    """Word-level tokens per caption, without the end token."""


def caption_metrics(scenes: Sequence[Scene], captions: Sequence[str]) -> CaptionMetrics:
    """Metrics of one caption per scene.

    Raises:
        ValueError: if there are none, or not equally many.
    """
    if not scenes or len(scenes) != len(captions):
        raise ValueError(f"{len(scenes)} scenes and {len(captions)} captions; give equally many, and at least one")
    named = [set(mentioned(caption)) for caption in captions]
    there = [set(scene.names) for scene in scenes]
    false = [len(said - true) for said, true in zip(named, there, strict=True)]
    everything = sum(len(said) for said in named)
    return CaptionMetrics(
        chair_s=fmean(count > 0 for count in false),
        chair_i=sum(false) / everything if everything else 0.0,
        cover=fmean(len(said & true) / len(true) for said, true in zip(named, there, strict=True)),
        mean_tokens=fmean(len(caption.split()) for caption in captions),
    )


@dataclass(frozen=True)
class AnswerMetrics:
    """How yes/no answers fit the truth; fractions."""

    accuracy: float
    yes: float
    """Share of answers "yes"."""
    false_yes: float
    """Share of "yes" among questions whose true answer is no."""


def answer_metrics(labels: Sequence[bool], said: Sequence[str]) -> AnswerMetrics:
    """Metrics of answers; one that does not begin with "yes" counts as no, as in POPE.

    Raises:
        ValueError: if there are none, or not equally many.
    """
    if not labels or len(labels) != len(said):
        raise ValueError(f"{len(labels)} labels and {len(said)} answers; give equally many, and at least one")
    yes = [text.lower().startswith("yes") for text in said]
    negatives = [one for one, label in zip(yes, labels, strict=True) if not label]
    return AnswerMetrics(
        accuracy=fmean(one == label for one, label in zip(yes, labels, strict=True)),
        yes=fmean(yes),
        false_yes=fmean(negatives) if negatives else 0.0,
    )
