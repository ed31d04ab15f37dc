"""Bounds of an image's pixels as the model sees it, for models that take images at their own size.

An image of 12 megapixels is some 15,000 tokens for Qwen2-VL. Sampler and update must bound images alike.
"""

from __future__ import annotations

from typing import Any

from sightline_chassis.families.processing import ProcessorUnusable


def bound_pixels(processor: Any, least: int | None, most: int | None) -> None:
    """Set the fewest and most pixels of an image; None leaves what the model's processor says.

    Args:
        processor: of a model; changed.
        least: fewest pixels (width times height) of an image, which is enlarged to them.
        most: most pixels, to which an image is made smaller.

    Raises:
        ProcessorUnusable: the processor takes no such bounds, or they exclude each other.
    """
    if least is None and most is None:
        return
    images = processor.image_processor
    names = getattr(images.valid_kwargs, "__annotations__", {})
    if not {"min_pixels", "max_pixels"} <= names.keys():
        raise ProcessorUnusable(
            f"{type(images).__name__} takes no min_pixels and max_pixels, as those of the Qwen-VL families do"
        )
    size = dict(images.size)
    # What these processors call edges are areas.
    fewest, most = least or size["shortest_edge"], most or size["longest_edge"]
    if fewest > most:
        raise ProcessorUnusable(f"min_pixels {fewest} are more than max_pixels {most}")
    images.size = {"shortest_edge": fewest, "longest_edge": most}
