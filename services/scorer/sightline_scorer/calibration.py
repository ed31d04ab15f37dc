"""Percentiles: the rank of a cosine among those of a reference set, by a monotone curve stored beside the model.

CLIP's cosines have no scale of their own (a good match may be 0.25 with one model and 0.9 with another). The curve
gives the percentage of a reference set's pairs that score lower. It is fitted once by `sightline scorer calibrate` and
stored as JSON:

    {"format": 1, "weights_digest": "...", "preprocessing_digest": "...", "picture_rule": "1", "pairs": 5000,
     "cosines": [...], "percentiles": [...]}

Both lists are increasing; between two points the curve is linear, outside it is 0 and 100.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sightline.picture_rule import PICTURE_RULE

FILE_NAME = "calibration.json"
LEAST_PAIRS = 20
_POINTS = 1001
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone curve from cosine to percentile."""

    weights_digest: str
    """SHA-256 of the weights that it was fitted for, hexadecimal."""
    preprocessing_digest: str
    """SHA-256 of that model's preprocessing, hexadecimal."""
    pairs: int
    """Pairs of the reference set."""
    cosines: npt.NDArray[np.float64]
    """[P], strictly rising."""
    levels: npt.NDArray[np.float64]
    """[P] increasing percentiles, 0 to 100."""
    picture_rule: str = PICTURE_RULE
    """Version of the rule by which its pictures were read; "" if the file names none, as in 0.1.0."""
    digest: str = ""
    """SHA-256 of the file, hexadecimal."""

    def percentiles(self, cosine: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Percentile [N], 0 to 100, of each cosine [N]."""
        found: npt.NDArray[np.float32] = np.interp(cosine, self.cosines, self.levels, left=0, right=100).astype(
            np.float32
        )
        return found

    def to_json(self) -> str:
        """The content of its file."""
        facts = {
            "format": _FORMAT,
            "weights_digest": self.weights_digest,
            "preprocessing_digest": self.preprocessing_digest,
            "picture_rule": self.picture_rule,
            "pairs": self.pairs,
            "cosines": [round(value, 7) for value in self.cosines.tolist()],
            "percentiles": [round(value, 5) for value in self.levels.tolist()],
        }
        return json.dumps(facts, indent=1) + "\n"


def fit(cosines: npt.ArrayLike, weights_digest: str, preprocessing_digest: str) -> Calibration:
    """The curve of a reference set's cosines [N]: its empirical distribution at up to 1001 points.

    Raises ValueError for fewer than 20 pairs, for numbers that are not finite, and if all are equal.
    """
    values = np.sort(np.asarray(cosines, dtype=np.float64).ravel())
    if len(values) < LEAST_PAIRS:
        raise ValueError(f"{len(values)} pairs are too few for a calibration: give at least {LEAST_PAIRS}, better 1000")
    if not np.isfinite(values).all():
        raise ValueError("the reference set's cosines are not all finite")
    levels = np.linspace(0, 100, min(_POINTS, len(values)))
    points = np.round(np.percentile(values, levels), 7)
    knots, first = np.unique(points, return_index=True)
    if len(knots) < 2:
        raise ValueError("all pairs of the reference set have the same cosine: give different images and texts")
    last = np.append(first[1:], len(points)) - 1
    middle = (levels[first] + levels[last]) / 2  # if many pairs have the same cosine, half of them count as lower
    middle[0], middle[-1] = 0.0, 100.0
    return Calibration(weights_digest, preprocessing_digest, len(values), knots, middle)


def read(path: Path) -> Calibration:
    """Read a file. Raises ValueError that says what is wrong with it, or OSError if it cannot be read."""
    content = path.read_bytes()
    try:
        facts = json.loads(content)
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}, this version reads {_FORMAT}")
        calibration = Calibration(
            weights_digest=str(facts["weights_digest"]),
            preprocessing_digest=str(facts["preprocessing_digest"]),
            pairs=int(facts["pairs"]),
            cosines=np.array(facts["cosines"], dtype=np.float64),
            levels=np.array(facts["percentiles"], dtype=np.float64),
            picture_rule=str(facts.get("picture_rule", "")),
            digest=hashlib.sha256(content).hexdigest(),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a calibration: {error!r}; create it again with `sightline scorer calibrate`"
        ) from error
    knots, levels = calibration.cosines, calibration.levels
    if (
        knots.ndim != 1
        or knots.shape != levels.shape
        or len(knots) < 2
        or not (np.isfinite(knots).all() and np.isfinite(levels).all())
        or not (np.diff(knots) > 0).all()
        or not (np.diff(levels) >= 0).all()
        or levels[0] < 0
        or levels[-1] > 100
    ):
        raise ValueError(
            f"{path} is not a calibration: its points do not rise; create it again with `sightline scorer calibrate`"
        )
    return calibration
