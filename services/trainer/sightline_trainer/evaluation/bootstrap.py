"""Bootstrap: how much a metric would vary with other images.

Percentile bootstrap (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13): images are drawn with
replacement, the metric is computed again each time, and the interval is the middle `level` of those values. The unit
is the image, not the caption or the question: texts about one image are not independent (chapter 8.6; a cluster
bootstrap). Two policies on the same images are compared by drawing the same images for both (a paired bootstrap; Koehn
2004, "Statistical Significance Tests for Machine Translation Evaluation"), so what is hard about an image cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sightline.errors import InvalidInput

from sightline_trainer.evaluation.ratios import Ratio, Ratios

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 2_000_000  # draws held in memory at a time


@dataclass(frozen=True)
class Interval:
    """The middle `level` of the bootstrap's values; None if the metric is not defined."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """`other - one` of a metric, with its interval. `clear` means that the interval excludes 0."""

    one: float | None
    other: float | None
    change: float | None
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def intervals(
    ratios: Ratios, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """A percentile interval for each metric.

    Args:
        ratios: metrics over n images.
        resamples: bootstrap samples; 1000 give a 95 % bound to about 0.07 standard errors.
        seed: the same seed gives the same interval.
        level: share of the bootstrap's values inside the interval.
    """
    draws = _resampled(list(ratios.of.values()), resamples, seed)
    return {name: _percentiles(values, level) for name, values in zip(ratios.of, draws, strict=True)}


def paired(
    one: Ratios, other: Ratios, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Difference]:
    """`other - one` for each metric that both have, over the same images in the same draws.

    Raises:
        InvalidInput: the two were not measured on the same images.
    """
    if set(one.images) != set(other.images):
        missing = sorted(set(one.images) ^ set(other.images))
        raise InvalidInput(
            f"the two were not measured on the same images: {len(missing)} are in only one of them, such as "
            f"{missing[0]!r}; evaluate both on one dataset",
            reason="IMAGES_DIFFER",
        )
    place = {image: at for at, image in enumerate(other.images)}
    order = np.array([place[image] for image in one.images], dtype=np.intp)
    names = [name for name in one.of if name in other.of]
    mine = [one.of[name] for name in names]
    theirs = [Ratio(other.of[name].above[order], other.of[name].below[order]) for name in names]
    draws = _resampled([*mine, *theirs], resamples, seed)
    found: dict[str, Difference] = {}
    for at, name in enumerate(names):
        before, after = mine[at].value, theirs[at].value
        interval = _percentiles(draws[len(names) + at] - draws[at], level)
        change = None if before is None or after is None else after - before
        found[name] = Difference(before, after, change, interval.low, interval.high)
    return found


def _resampled(ratios: Sequence[Ratio], resamples: int, seed: int) -> NDArray[np.float64]:
    """The metrics in each bootstrap sample, shape [metrics, resamples]; NaN if a denominator is 0."""
    if not ratios:
        return np.empty((0, resamples))
    sums = np.stack([side for ratio in ratios for side in (ratio.above, ratio.below)], axis=1)
    drawn = np.concatenate([weights @ sums for weights in _weights(len(sums), resamples, seed)])
    above, below = drawn[:, 0::2].T, drawn[:, 1::2].T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below != 0, above / below, np.nan)


def _weights(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image was drawn, in blocks of shape [some resamples, images]."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // max(images, 1))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(images, size=(count, images)) if images else np.empty((count, 0), dtype=np.int64)
        flat = (drawn + images * np.arange(count)[:, None]).ravel()
        yield np.bincount(flat, minlength=count * images).reshape(count, images).astype(np.float64)


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(None, None)
    tail = 50 * (1 - level)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(float(low), float(high))
