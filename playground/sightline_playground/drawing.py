"""Pictures of scenes: 48 x 48 RGB, drawn with Pillow, smooth edges by drawing each object 8 times as large."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw

from sightline_playground.scenes import Scene
from sightline_playground.world import COLOURS, GRID

SIZE: Final = 48
"""Pixels per side of a picture."""
CELL: Final = SIZE // GRID
"""Pixels per side of a cell."""
STAMP: Final = 12
"""Pixels per side of an object; with a jitter of 2 it stays within its cell."""
_FINE: Final = 8


def draw(scene: Scene) -> Image.Image:
    """The scene's picture, mode RGB, 48 x 48."""
    picture = Image.new("RGB", (SIZE, SIZE), (scene.shade,) * 3)
    for item in scene.items:
        mask = _mask(item.thing.shape)
        left = item.column * CELL + (CELL - STAMP) // 2 + item.dx
        top = item.row * CELL + (CELL - STAMP) // 2 + item.dy
        picture.paste(COLOURS[item.thing.colour], (left, top, left + STAMP, top + STAMP), mask)
    return picture


@lru_cache
def _mask(shape: str) -> Image.Image:
    """Coverage of a shape, mode L, 12 x 12."""
    side = STAMP * _FINE
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    box = (4, 4, side - 5, side - 5)
    if shape == "circle":
        pen.ellipse(box, fill=255)
    elif shape == "ring":
        pen.ellipse(box, fill=255)
        hole = side // 4
        pen.ellipse((hole, hole, side - hole - 1, side - hole - 1), fill=0)
    elif shape == "square":
        pen.rectangle((8, 8, side - 9, side - 9), fill=255)
    elif shape == "triangle":
        pen.polygon([(side / 2, 4), (side - 4, side - 8), (4, side - 8)], fill=255)
    elif shape == "cross":
        arm = side // 3
        pen.rectangle((arm, 4, side - arm - 1, side - 5), fill=255)
        pen.rectangle((4, arm, side - 5, side - arm - 1), fill=255)
    elif shape == "star":
        pen.polygon(_star(side), fill=255)
    else:
        raise ValueError(f"no shape {shape!r}")
    return mask.resize((STAMP, STAMP), Image.Resampling.BOX)


def _star(side: int) -> list[tuple[float, float]]:
    centre, outer, inner = side / 2, side / 2 - 1, side / 4.8
    return [
        (
            centre + (outer if point % 2 == 0 else inner) * math.sin(math.pi * point / 5),
            centre - (outer if point % 2 == 0 else inner) * math.cos(math.pi * point / 5),
        )
        for point in range(10)
    ]
