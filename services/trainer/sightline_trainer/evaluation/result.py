"""The result of an evaluation as JSON values: counts, ratios and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sightline.errors import InvalidInput

from sightline_trainer.evaluation.bootstrap import LEVEL, RESAMPLES, Difference, intervals, paired
from sightline_trainer.evaluation.ratios import Ratios


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
        suite: "chair", "pope", "amber" or "playground".
        counts: the integers behind the metrics.
        ratios: the metrics by image; "part/metric" for a part that is also reported separately.
        settings: the settings used: compat, rule, temperature, policy version and others.
        differs: how this differs from the official script, in sentences for people.
        official: the numbers as the official script prints them, if requested.
        details: one object for each text.
    """

    suite: str
    counts: Mapping[str, int]
    ratios: Ratios
    settings: Mapping[str, Any] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    official: Mapping[str, Any] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self, *, details: bool, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
        """The result as JSON: `metrics` has value, numerator, denominator, low and high for each.

        `sightline eval compare` needs `by_image` (with `details`).
        """
        bounds = intervals(self.ratios, resamples=resamples, seed=seed)
        metrics = {
            name: {
                "value": ratio.value,
                "numerator": _number(ratio.above),
                "denominator": _number(ratio.below),
                "low": bounds[name].low,
                "high": bounds[name].high,
            }
            for name, ratio in self.ratios.of.items()
        }
        value: dict[str, Any] = {
            "suite": self.suite,
            "settings": dict(self.settings),
            "counts": dict(self.counts),
            "metrics": metrics,
            "interval": {
                "level": LEVEL,
                "method": "percentile bootstrap over images",
                "images": len(self.ratios.images),
                "resamples": resamples,
                "seed": seed,
            },
            "differs_from_official": list(self.differs),
        }
        if self.official:
            value["official"] = dict(self.official)
        if details:
            value |= {"details": self.details, "by_image": self.ratios.to_json()}
        return value


def _number(sums: np.ndarray[Any, np.dtype[np.float64]]) -> int | float:
    total = float(sums.sum())
    return int(total) if total == int(total) else total


def compare(one: Mapping[str, Any], other: Mapping[str, Any], *, seed: int = 0) -> dict[str, Difference]:
    """The paired differences of two results (`to_json(details=True)`) on the same images.

    Raises:
        InvalidInput: a result has no `by_image`, or belongs to another suite or other images.
    """
    sides = []
    for value in (one, other):
        if "by_image" not in value:
            raise InvalidInput("a result has no by_image; write it with --details", reason="NO_DETAILS")
        try:
            sides.append(Ratios.from_json(value["by_image"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"by_image can't be read ({error})", reason="RESULT") from None
    if one.get("suite") != other.get("suite"):
        raise InvalidInput(
            f"one result comes from {one.get('suite')!r}, the other from {other.get('suite')!r}", reason="SUITES_DIFFER"
        )
    return paired(sides[0], sides[1], seed=seed)


def write_result(path: Path, value: Mapping[str, Any]) -> None:
    """Write a whole JSON file."""
    from sightline_trainer.files import write_json

    write_json(path, value)


def differences_json(found: Mapping[str, Difference]) -> dict[str, Any]:
    """Differences as JSON."""
    return {name: {**asdict(one), "clear": one.clear} for name, one in found.items()}
