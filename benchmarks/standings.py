"""Standings: the leaderboard's figures, from one committed JSON per run; a table needs no run directories.

`results/leaderboard/base-SEED.json` holds the contribution of each test image to numerator and denominator of every
metric, for the base model's captions. `RECIPE-SEED.json` holds the same for the policy after the last iteration, with
pairs and time, and `RECIPE-without-SEED.json` for the recipe with its own part neutral (for a recipe that trains
nothing, that is the base model). A figure is a mean over seeds. Its interval is a 95 % percentile bootstrap over seeds,
and over test images within a seed; everything that is compared has the same images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = Mapping[str, NDArray[np.float64]]
"""Metric -> [images, 2], numerator and denominator."""
METRICS = (
    "chair_s", "chair_i", "cover", "pope_f1", "attribute_accuracy", "mean_tokens", "clip_score",
    "distinct", "greedy_chair_s", "greedy_cover",
)  # fmt: skip
RESAMPLES = 2000
_BIN = 3
"""Tokens in a bin of the length histogram: a single length has too few captions."""


@dataclass(frozen=True)
class SeedRun:
    """One run of a recipe and the run it is compared with, over the same images in the same order."""

    seed: int
    base: Counts
    final: Counts
    without: Counts | None
    facts: Mapping[str, Any]

    def drawn(self, at: NDArray[np.intp]) -> SeedRun:
        """The standing over these images only; each counts as often as it is listed."""

        def some(counts: Counts) -> Counts:
            return {name: parts[at] for name, parts in counts.items()}

        without = None if self.without is None else some(self.without)
        return SeedRun(self.seed, some(self.base), some(self.final), without, self.facts)


def counts_of(by_image: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """{metric: [numerator, denominator]} from an evaluation's by_image.json, images in the order of their names."""
    order = np.argsort(by_image["images"])
    return {
        name: np.asarray(parts, dtype=np.float64)[order].T.round(4).tolist()
        for name, parts in by_image["of"].items()
        if name in METRICS
    }


def read(directory: Path, name: str) -> list[SeedRun]:
    """A recipe's finished runs by seed."""
    runs = []
    for path in sorted(directory.glob(f"{name}-[0-9]*.json")):
        facts = json.loads(path.read_text())
        base = directory / f"base-{facts['seed']}.json"
        other = directory / f"{name}-without-{facts['seed']}.json"
        if base.exists():
            plain = counts_in(json.loads(base.read_text()))
            without = None if facts["trained"] else plain
            if other.exists():
                without = counts_in(json.loads(other.read_text()))
            runs.append(SeedRun(facts["seed"], plain, counts_in(facts), without, facts))
    return runs


def counts_in(facts: Mapping[str, Any]) -> Counts:
    """The contributions in a kept result."""
    return {name: np.asarray(parts, dtype=np.float64).T for name, parts in facts["counts"].items()}


def ratio(counts: Counts, name: str) -> float:
    """A metric over all images."""
    above, below = counts[name].sum(axis=0)
    return float(above / below) if below else float("nan")


def cut_at_equal_length(run: SeedRun) -> float:
    """1 - CHAIR_s of the policy over that of the base captions, these reweighted to the policy's token histogram.

    A base caption whose length is twice as frequent in the policy counts twice, so the effect of length is removed.
    """
    lengths = {
        name: (counts["mean_tokens"][:, 0] // _BIN).astype(int)
        for name, counts in (("base", run.base), ("final", run.final))
    }
    size = 1 + max(int(each.max()) for each in lengths.values())
    base, final = (np.bincount(lengths[name], minlength=size).astype(float) for name in ("base", "final"))
    share = np.divide(final, base, out=np.zeros(size), where=base > 0)
    weights = share[lengths["base"]]
    above, below = (weights[:, None] * run.base["chair_s"]).sum(axis=0)
    return 1 - ratio(run.final, "chair_s") / (above / below) if above else float("nan")


FIGURES: dict[str, Callable[[SeedRun], float]] = {
    "chair_s_cut": lambda run: 1 - ratio(run.final, "chair_s") / ratio(run.base, "chair_s"),
    "cover_change": lambda run: ratio(run.final, "cover") - ratio(run.base, "cover"),
    "length_change": lambda run: ratio(run.final, "mean_tokens") / ratio(run.base, "mean_tokens") - 1,
    "pope_f1_change": lambda run: ratio(run.final, "pope_f1") - ratio(run.base, "pope_f1"),
    "attribute_change": lambda run: ratio(run.final, "attribute_accuracy") - ratio(run.base, "attribute_accuracy"),
    "chair_s_cut_at_equal_length": cut_at_equal_length,
}
"""Rows of each recipe, by the name after the recipe's."""


def over_without(run: SeedRun) -> float:
    """Cut of CHAIR_s by the recipe minus that of the same recipe with its own part neutral."""
    assert run.without is not None
    return (ratio(run.without, "chair_s") - ratio(run.final, "chair_s")) / ratio(run.base, "chair_s")


def with_interval(runs: Sequence[SeedRun], figure: Callable[[SeedRun], float]) -> list[float]:
    """[mean over seeds, lower, upper]; a draw in which the figure is undefined is left out."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        picked = [runs[i] for i in rng.integers(len(runs), size=len(runs))]
        values = []
        for run in picked:
            images = len(run.base["chair_s"])
            values.append(figure(run.drawn(rng.integers(images, size=images))))
        draws.append(np.nanmean(values) if not np.all(np.isnan(values)) else np.nan)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return [float(np.nanmean([figure(run) for run in runs])), float(low), float(high)]
