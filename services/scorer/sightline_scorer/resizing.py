"""open_clip's evaluation transform up to its pixels, by Pillow alone: resize, crop or pad.

Equal to torchvision's steps to the bit, which themselves call Pillow for a picture (the tests compare both).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Resizing:
    """How a model's pictures are resized.

    Raises:
        ValueError: a mode that open_clip does not have.
    """

    height: int
    width: int
    mode: str
    """shortest: the short side fits, the middle is kept; longest: the long side fits, the rest is padded; squash."""
    resample: Image.Resampling
    fill: int

    def __post_init__(self) -> None:
        if self.mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize_mode {self.mode!r} is not one of shortest, longest, squash")

    @classmethod
    def of(cls, preprocess: Mapping[str, Any]) -> Resizing:
        """From open_clip's preprocessing configuration."""
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mode = preprocess.get("resize_mode") or "shortest"
        # As in open_clip: other names are bicubic, and so is an image of uneven sides whose short side fits.
        name = preprocess.get("interpolation") or "bicubic"
        even = height == width or mode != "shortest"
        resample = _FILTERS.get(name, Image.Resampling.BICUBIC) if even else Image.Resampling.BICUBIC
        return cls(int(height), int(width), mode, resample, int(preprocess.get("fill_color") or 0))

    @property
    def centre_side(self) -> int | None:
        """The side, if the short side is resized to it and the middle square is kept."""
        return self.height if self.mode == "shortest" and self.height == self.width else None

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB picture of the model's size. Raises ValueError for a strip with a side that would have no pixels."""
        image = self._resized(image)
        if self.mode == "squash":
            return image
        return _centre(_padded(image, self.width, self.height, self.fill), self.width, self.height)

    def _resized(self, image: Image.Image) -> Image.Image:
        size = self._size(image.width, image.height)
        return image if image.size == size else image.resize(size, self.resample)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self.mode == "squash":
            return self.width, self.height
        if self.mode == "shortest" and self.height == self.width:  # torchvision's Resize rounds down
            side, short, long = self.height, min(width, height), max(width, height)
            longer = int(side * long / short)
            return (side, longer) if width <= height else (longer, side)
        ratios = (height / self.height, width / self.width)
        ratio = max(ratios) if self.mode == "longest" else min(ratios)
        return round(width / ratio), round(height / ratio)


def _padded(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """Add a border if the picture is smaller; the odd pixel goes to the right and the bottom."""
    wide, high = max(0, width - image.width), max(0, height - image.height)
    if not wide and not high:
        return image
    border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
    return ImageOps.expand(image, border, (fill, fill, fill))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
