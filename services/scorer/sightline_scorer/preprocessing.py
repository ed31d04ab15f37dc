"""open_clip's evaluation transform without its last two steps, which run in the Triton model.

`image_transform` of open_clip ends in ToTensor and Normalize. Here pixels stay uint8 (a quarter of the bytes on the
wire) and the model divides, subtracts and divides in the same order, so both ways agree to the last bits.

For a strip whose resize would make many pixels, all but the centre of which are cut away, only the centre is computed:
see centre.py.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from sightline.errors import InvalidInput
from sightline_chassis import images

from sightline_scorer.centre import centre, knows
from sightline_scorer.resizing import Resizing
from sightline_scorer.settings import ScorerLimits
from sightline_scorer.triton.card import ModelCard

_MOST_RESIZED = 1 << 20
"""Maximum pixels of a whole enlarged picture; if there would be more, only the kept part is computed."""


class Preprocessor:
    """From an encoded image to the pixels of one model's image tower. Safe to use from several threads."""

    def __init__(self, card: ModelCard, limits: ScorerLimits) -> None:
        self._limits = limits
        self._shortest_edge = card.preprocess["resize_mode"] == "shortest"
        self._size = (card.image_height, card.image_width)
        self._resize = Resizing.of(card.preprocess)
        side, resample = self._resize.centre_side, self._resize.resample
        self._centre = (side, resample) if side is not None and knows(resample) else None

    def __call__(self, content: bytes) -> npt.NDArray[np.uint8]:
        """Pixels uint8 [3, H, W] of an encoded image. Raises InvalidInput if it cannot be used."""
        return self.pixels(self.read_header(content))

    def read_header(self, content: bytes) -> Image.Image:
        """The first, quick half: an image within the limits, not decoded yet. Raises InvalidInput."""
        image = images.read_header(content, self._limits)
        self._check_shape(image.size)
        return image

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The second half: decode, resize, crop. Raises InvalidInput."""
        image = images.finish(image)
        if self._centre is not None and min(image.size) <= self._centre[0] and self.resized(image.size) > _MOST_RESIZED:
            return np.ascontiguousarray(centre(image, *self._centre).transpose(2, 0, 1))
        try:
            image = self._resize(image)
        except ValueError as error:  # a strip whose short side would have no pixels left
            raise InvalidInput(
                f"the image is {image.width} x {image.height} and cannot be resized for this model ({error}): crop it",
                reason="IMAGE_TOO_THIN",
            ) from None
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))

    def resized(self, size: tuple[int, int]) -> int:
        """Pixels that an image of (width, height) is resized to, before its centre is cut out."""
        if not self._shortest_edge:
            return self._size[0] * self._size[1]
        side = max(self._size)
        return math.ceil(side * side * max(size) / min(size))

    def _check_shape(self, size: tuple[int, int]) -> None:
        """Refuse a strip that would be resized to too many pixels, unless only its centre is computed."""
        if self._centre is None and self._shortest_edge and self.resized(size) > 4 * _MOST_RESIZED:
            width, height = size
            raise InvalidInput(
                f"the image is {width} x {height}: with its short side resized to {max(self._size)} pixels it would "
                f"have over {4 * _MOST_RESIZED} pixels; crop it",
                reason="IMAGE_TOO_MANY_PIXELS",
                metadata={"width": str(width), "height": str(height), "limit": str(4 * _MOST_RESIZED)},
            )
