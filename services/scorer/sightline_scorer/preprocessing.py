"""open_clip's own evaluation transform without its last two steps, which run in the Triton model.

`image_transform` of open_clip ends in ToTensor and Normalize. Here pixels stay uint8 (a quarter of the bytes on the
wire) and the model divides, subtracts and divides in the same order, so both ways agree to the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sightline.errors import InvalidInput
from sightline_chassis import images

from sightline_scorer.settings import ScorerLimits
from sightline_scorer.triton.card import ModelCard


class Preprocessor:
    """From an encoded image to the pixels of one model's image tower. Safe to use from several threads."""

    def __init__(self, card: ModelCard, limits: ScorerLimits) -> None:
        self._limits = limits
        self._shortest_edge = card.preprocess["resize_mode"] == "shortest"
        self._size = (card.image_height, card.image_width)
        self._steps = _resizing_steps(card.preprocess)

    def __call__(self, content: bytes) -> npt.NDArray[np.uint8]:
        """Pixels uint8 [3, H, W] of an encoded image. Raises InvalidInput where it cannot be used."""
        return self.pixels(self.read_header(content))

    def read_header(self, content: bytes) -> Image.Image:
        """The first, quick half: an image that fits the limits, not decoded yet. Raises InvalidInput."""
        image = images.read_header(content, self._limits)
        self._check_shape(image.size)
        return image

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The second half: decode, resize, crop. Raises InvalidInput."""
        image = images.finish(image)
        for step in self._steps:
            image = step(image)
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))

    def _check_shape(self, size: tuple[int, int]) -> None:
        """Refuse a strip so long that resizing its short side to the model's would need more than the pixel limit."""
        width, height = size
        if not self._shortest_edge:
            return
        side = max(self._size)
        if math.ceil(side * side * max(size) / min(size)) > self._limits.max_image_pixels:
            raise InvalidInput(
                f"the image is {width} x {height}: with its short side resized to {side} pixels it would have over "
                f"{self._limits.max_image_pixels} pixels; crop it",
                reason="IMAGE_TOO_MANY_PIXELS",
                metadata={"width": str(width), "height": str(height), "limit": str(self._limits.max_image_pixels)},
            )


def _resizing_steps(preprocess: dict[str, Any]) -> list[Callable[[Image.Image], Image.Image]]:
    from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
    from torchvision.transforms import Normalize

    transform = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    steps: list[Callable[[Image.Image], Image.Image]]
    *steps, to_tensor, normalize = transform.transforms
    if not isinstance(to_tensor, MaybeToTensor) or not isinstance(normalize, Normalize):
        raise TypeError(f"open_clip's transform does not end in ToTensor, Normalize: {transform}")
    return steps
