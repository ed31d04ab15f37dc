"""Computes only the centre of a resized picture.

A strip of 1 x 990 pixels resized to 224 on its short side is 224 x 221760 pixels, of which 224 x 224 are kept. The kept
part is computed as in Pillow (Resample.c: a pass along the rows, then one along the columns, with fixed-point weights
of 22 bits), so it is equal to the bit; Pillow's own `resize(box=...)` is not. Only for enlarged pictures: reduced ones
are small, and Pillow may then start with the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_BITS = 22

Pixels = npt.NDArray[np.int64]
Filter = Callable[[float], float]


def _bicubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1 - abs(x))


_FILTERS: dict[Image.Resampling, tuple[Filter, float]] = {
    Image.Resampling.BICUBIC: (_bicubic, 2.0),
    Image.Resampling.BILINEAR: (_bilinear, 1.0),
}


def knows(resample: Image.Resampling) -> bool:
    """Whether this picture's resize is supported here."""
    return resample in _FILTERS


def centre(image: Image.Image, side: int, resample: Image.Resampling) -> npt.NDArray[np.uint8]:
    """The middle [side, side, 3] of an RGB picture whose short side is resized to `side`."""
    short = min(image.size)
    pixels: Any = np.asarray(image, dtype=np.uint8)
    bounds = [_weights(length, short, side, resample) for length in (image.height, image.width)]
    rows, columns = bounds
    first, last = rows[0][0], max(start + len(weights) for start, weights in rows)
    part: Pixels = pixels[first:last].astype(np.int64)
    across = _apply(part.transpose(1, 0, 2), columns).transpose(1, 0, 2)
    down = _apply(across, [(start - first, weights) for start, weights in rows])
    return down.astype(np.uint8)


def _weights(length: int, short: int, side: int, resample: Image.Resampling) -> list[tuple[int, list[int]]]:
    """For each kept pixel along one side: the first source pixel, and the weights from there on."""
    kernel, radius = _FILTERS[resample]
    whole = int(side * length / short)  # as torchvision rounds
    begin = round((whole - side) / 2.0)
    scale = length / whole
    wide = max(scale, 1.0)
    narrow = 1.0 / wide
    found = []
    for number in range(begin, begin + side):
        middle = (number + 0.5) * scale
        start = max(int(middle - radius * wide + 0.5), 0)
        end = min(int(middle + radius * wide + 0.5), length)
        weights = [kernel((at - middle + 0.5) * narrow) for at in range(start, end)]
        total = sum(weights)
        found.append((start, [_fixed(weight / total) for weight in weights]))
    return found


def _fixed(weight: float) -> int:
    return int(weight * (1 << _BITS) + (0.5 if weight >= 0 else -0.5))


def _apply(pixels: Pixels, weights: list[tuple[int, list[int]]]) -> Pixels:
    """[n, ...] to [side, ...]."""
    out = np.empty((len(weights), *pixels.shape[1:]), np.int64)
    for number, (start, some) in enumerate(weights):
        total = np.full(pixels.shape[1:], 1 << (_BITS - 1), np.int64)
        for offset, weight in enumerate(some):
            total += pixels[start + offset] * weight
        out[number] = np.clip(total >> _BITS, 0, 255)
    return out
