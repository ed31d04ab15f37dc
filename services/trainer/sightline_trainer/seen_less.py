"""Degraded views: a picture under noise, or a small piece of it, as a picture of the same size.

The noise is that of VCD's, POVID's, BPO's and CHiP's code, over 1000 steps:

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e, with a_t = prod(1 - b_s) and b = sigmoid(-6 .. 6) * (0.5e-2 - 1e-5) + 1e-5
"""

from __future__ import annotations

import functools
import math

import numpy as np
import PIL.Image

_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


@functools.lru_cache(maxsize=1000)
def kept_signal(step: int) -> float:
    """a_t of a step from 0 to 999: the remaining share of the picture's variance."""
    betas = (0.5e-2 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, 1000))) + 1e-5
    return float(np.cumprod(1 - betas)[step])


def noisy(picture: PIL.Image.Image, step: int, draws: np.random.Generator) -> PIL.Image.Image:
    """An RGB picture after some steps, on pixels in [0, 1], clamped."""
    kept = kept_signal(step)
    clean = np.asarray(picture, dtype=np.float64) / 255
    mixed = math.sqrt(kept) * clean + math.sqrt(1 - kept) * draws.standard_normal(clean.shape)
    return PIL.Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8))


def cropped(picture: PIL.Image.Image, scale: tuple[float, float], draws: np.random.Generator) -> PIL.Image.Image:
    """A random piece with some share of the area, as in torchvision's RandomResizedCrop, enlarged to the original size.

    Args:
        scale: minimum and maximum share.
    """
    width, height = picture.size
    for _ in range(_TRIES):
        area = width * height * draws.uniform(*scale)
        ratio = math.exp(draws.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            break
    else:  # a very elongated picture has no such piece: a square with its shorter side's length
        w = h = min(width, height)
    left, top = int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1))
    piece = picture.crop((left, top, left + w, top + h))
    return piece.resize((width, height), PIL.Image.Resampling.BICUBIC)
