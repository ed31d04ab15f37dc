"""Ratio: a metric that is one sum over another, stored by image so that images can be resampled.

Every metric of this package has that form: CHAIR_s is hallucinated captions over captions, F1 is 2 TP over
2 TP + FP + FN, a mean is a sum over a count. A ratio with denominator 0 is None (`null` in JSON), never 0 and never an
error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Part = tuple[float, float]
"""One text's contribution to numerator and denominator."""


@dataclass(frozen=True)
class Ratio:
    """`sum(above) / sum(below)`; both of shape [images]."""

    above: NDArray[np.float64]
    below: NDArray[np.float64]

    @property
    def value(self) -> float | None:
        """The metric, or None if the denominator is 0."""
        below = float(self.below.sum())
        return float(self.above.sum()) / below if below else None


@dataclass(frozen=True)
class Ratios:
    """Several metrics over the same images."""

    images: tuple[str, ...]
    of: Mapping[str, Ratio]

    def only(self, images: Collection[str]) -> Ratios:
        """The same for some of the images."""
        kept = np.array([at for at, image in enumerate(self.images) if image in images], dtype=np.intp)
        of = {name: Ratio(one.above[kept], one.below[kept]) for name, one in self.of.items()}
        return Ratios(tuple(self.images[at] for at in kept), of)

    @classmethod
    def collect(cls, rows: Iterable[tuple[str, Mapping[str, Part]]]) -> Ratios:
        """Sum `(image, {metric: (above, below)})`; several rows of one image become one unit.

        Every metric that any row names exists for all images, with (0, 0) if a row does not name it.
        """
        number: dict[str, int] = {}
        places: list[int] = []
        parts: list[Mapping[str, Part]] = []
        for image, part in rows:
            places.append(number.setdefault(image, len(number)))
            parts.append(part)
        at = np.array(places, dtype=np.intp)
        names = dict.fromkeys(name for part in parts for name in part)
        sums: dict[str, Ratio] = {}
        for name in names:
            values = np.array([part.get(name, (0.0, 0.0)) for part in parts], dtype=np.float64)
            above, below = np.zeros(len(number)), np.zeros(len(number))
            np.add.at(above, at, values[:, 0])
            np.add.at(below, at, values[:, 1])
            sums[name] = Ratio(above, below)
        return cls(tuple(number), sums)

    def value(self, name: str) -> float | None:
        """One metric; None if it is not defined."""
        return self.of[name].value if name in self.of else None

    def values(self) -> dict[str, float]:
        """All defined metrics."""
        return {name: ratio.value for name, ratio in self.of.items() if ratio.value is not None}

    def to_json(self) -> dict[str, Any]:
        """By image, so that two results can be compared later: `{"images": [...], "of": {metric: [[a, b], ...]}}`."""
        return {
            "images": list(self.images),
            "of": {name: np.stack([r.above, r.below], axis=1).tolist() for name, r in self.of.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ratios:
        """The inverse of `to_json`."""
        images = tuple(str(image) for image in value["images"])
        of = {name: np.array(parts, dtype=np.float64).reshape(-1, 2) for name, parts in value["of"].items()}
        if any(len(parts) != len(images) for parts in of.values()):
            raise ValueError("give as many parts as images")
        return cls(images, {name: Ratio(parts[:, 0], parts[:, 1]) for name, parts in of.items()})
