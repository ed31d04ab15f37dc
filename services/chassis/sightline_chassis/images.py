"""From the bytes of an image file to uint8 RGB, with every limit checked before the decoder runs.

What is done to an image, in this order, whatever the model (`PIXEL_RULES` in triton/card.py names it in the digest):

- Formats: JPEG (MPO too: its first picture), PNG, WebP, GIF; of an animation the first frame.
- The size in pixels is read from the header; over the limit, nothing is decoded. A file that ends early or does not
  decode is refused: half an image would give a score that looks like one.
- EXIF orientation is applied: the model sees the picture as a person does. (open_clip's own loaders do not; for a file
  with no orientation there is no difference.)
- Transparency is laid on white. 16-bit grey keeps its high byte. CMYK and palettes become RGB before resizing.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from sightline.errors import InvalidInput

from sightline_chassis.sections import ImageLimits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# What decoders raise on damaged files, beyond bugs of our own.
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError, TypeError, EOFError, struct.error, zlib.error)


def lift_pillow_limit() -> None:
    """Switch Pillow's own pixel limit off for this process: ours is checked for every image and can be set."""
    Image.MAX_IMAGE_PIXELS = None


def check_size(size: int, limits: ImageLimits) -> None:
    """Refuse an empty image and one over the byte limit."""
    if size == 0:
        raise InvalidInput(
            "the image holds 0 bytes: send the whole encoded file in image.content", reason="IMAGE_EMPTY"
        )
    if size > limits.max_image_bytes:
        raise InvalidInput(
            f"the image holds {size} bytes, over the limit of {limits.max_image_bytes}: send it smaller or compressed "
            "(models see a few hundred pixels a side), or raise limits.max_image_bytes",
            reason="IMAGE_TOO_LARGE",
            metadata={"bytes": str(size), "limit": str(limits.max_image_bytes)},
        )


def decode(content: bytes, limits: ImageLimits) -> Image.Image:
    """The picture in an encoded file, upright, in mode RGB.

    Raises InvalidInput with reason IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_UNREADABLE, IMAGE_TOO_MANY_PIXELS or
    IMAGE_DAMAGED.
    """
    return finish(read_header(content, limits))


def read_header(content: bytes, limits: ImageLimits) -> Image.Image:
    """The image of an encoded file, its size known and checked, nothing of it decoded yet. Raises as `decode`."""
    check_size(len(content), limits)
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidInput(
            f"the image's bytes are no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file (they begin with "
            f"{content[:8].hex(' ')}), or its header is damaged: send the encoded file itself, not base64, not pixels",
            reason="IMAGE_UNREADABLE",
        ) from None
    except Image.DecompressionBombError as error:
        raise InvalidInput(str(error), reason="IMAGE_TOO_MANY_PIXELS") from None
    except _DAMAGE as error:
        raise _damaged(error) from None
    check_pixels(image.size, limits)
    return image


def finish(image: Image.Image) -> Image.Image:
    """Decode what `read_header` gave. Raises InvalidInput with reason IMAGE_DAMAGED."""
    try:
        image.load()
        return _to_rgb(_upright(image))
    except _DAMAGE as error:
        raise _damaged(error) from None


def check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    """Refuse an image, by the size its header states, before it is decoded."""
    width, height = size
    if width * height > limits.max_image_pixels:
        raise InvalidInput(
            f"the image has {width} x {height} = {width * height} pixels, over the limit of "
            f"{limits.max_image_pixels}: send it smaller, or raise limits.max_image_pixels",
            reason="IMAGE_TOO_MANY_PIXELS",
            metadata={"width": str(width), "height": str(height), "limit": str(limits.max_image_pixels)},
        )


def _damaged(error: BaseException) -> InvalidInput:
    return InvalidInput(
        f"the image file is damaged or ends early ({error}): send the whole file", reason="IMAGE_DAMAGED"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing about orientation; the picture itself is whole
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values: np.ndarray[Any, Any] = np.asarray(image)
        image = Image.fromarray((np.clip(values, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
