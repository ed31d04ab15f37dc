"""Pixel bounds of the image that the model sees, for models that take images at their original size.

An image of 12 megapixels is some 15,000 tokens for Qwen2-VL. Sampler and update must bound images alike.
"""

from __future__ import annotations

from typing import Any

from sightline_chassis.families.processing import ProcessorUnusable


def bound_pixels(processor: Any, least: int | None, most: int | None) -> None:
    """Set the minimum and maximum pixels of an image; None keeps the processor's own bound.

    Args:
        processor: the model's processor; it is changed.
        least: minimum pixels (width times height); a smaller image is enlarged.
        most: maximum pixels; a larger image is reduced.

    Raises:
        ProcessorUnusable: the processor has no such bounds, or the minimum is above the maximum.
    """
    if least is None and most is None:
        return
    images = processor.image_processor
    names = getattr(images.valid_kwargs, "__annotations__", {})
    if not {"min_pixels", "max_pixels"} <= names.keys():
        raise ProcessorUnusable(
            f"{type(images).__name__} does not support min_pixels and max_pixels (the Qwen-VL families do)"
        )
    size = dict(images.size)
    # These processors name areas "edges".
    fewest, most = least or size["shortest_edge"], most or size["longest_edge"]
    if fewest > most:
        raise ProcessorUnusable(f"min_pixels {fewest} is above max_pixels {most}: lower one or raise the other")
    images.size = {"shortest_edge": fewest, "longest_edge": most}
