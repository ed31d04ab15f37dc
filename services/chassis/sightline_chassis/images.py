"""Bounds on reading a picture: bytes, pixels and chunks are checked before the decoder runs.

The rule itself is `sightline.picture_rule`, the same for scorer, sampler and update; this module checks untrusted files
before it. Files are JPEG (MPO too: its first picture), PNG, WebP, GIF, and AVIF if Pillow can read it. The size in
pixels is read from the header; over the limit, nothing is decoded. A file that ends early or does not decode is
refused, since half an image would give a score that looks valid. A PNG's text and profiles are never inflated (`png`).
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from sightline.errors import InvalidInput
from sightline.picture_rule import CANVAS, orientation, raw_mode, rgb
from sightline.pictures import write_png

from sightline_chassis.png import MAGIC, plain_png
from sightline_chassis.sections import ImageLimits

FORMATS = ("JPEG", "PNG", "WEBP", *(["AVIF"] if features.check("avif") else []), "GIF")
_PLAIN_PNG = frozenset(("RGB", "L", "L;2", "L;4", "1", "P", "P;1", "P;2", "P;4"))
# Errors of decoders on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError, TypeError, EOFError, struct.error, zlib.error)


def lift_pillow_limit() -> None:
    """Switch off Pillow's own pixel limit for this process: ours is configurable and checked for every image."""
    Image.MAX_IMAGE_PIXELS = None


def check_size(size: int, limits: ImageLimits) -> None:
    """Refuse an image that is empty or over the byte limit."""
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
    """The image of an encoded file, with its size checked but nothing decoded yet. Raises as `decode`."""
    return _opened(content, limits)[1]


def plain_file(content: bytes, limits: ImageLimits) -> tuple[bytes, str]:
    """A file that every decoder reads as the rule does, and its media type.

    It is the same file if decoders cannot disagree about it, otherwise a PNG of the picture by the rule. For programs
    that read pictures by their own rules. Raises as `decode`.
    """
    file, image = _opened(content, limits)
    raw = raw_mode(image)
    picture = finish(image)
    if _is_plain(image, raw):
        return file, Image.MIME["JPEG" if image.format == "MPO" else str(image.format)]
    return write_png(np.asarray(picture)), "image/png"


def finish(image: Image.Image) -> Image.Image:
    """Decode the result of `read_header`. Raises InvalidInput with reason IMAGE_DAMAGED."""
    try:
        return rgb(image)
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


def _opened(content: bytes, limits: ImageLimits) -> tuple[bytes, Image.Image]:
    """The file to decode, and its image."""
    check_size(len(content), limits)
    try:
        file, canvas = plain_png(content) if content.startswith(MAGIC) else (content, None)
        image: Image.Image = Image.open(io.BytesIO(file), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidInput(
            f"the image's bytes are not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file (they begin with "
            f"{content[:8].hex(' ')}), or its header is damaged: send the encoded file itself, not base64, not pixels",
            reason="IMAGE_UNREADABLE",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(str(error), reason="IMAGE_TOO_MANY_PIXELS") from None
    except _DAMAGE as error:
        raise _damaged(error) from None
    check_pixels(image.size, limits)
    if canvas is not None:
        check_pixels(canvas[:2], limits)
        image.info[CANVAS] = canvas
    return file, image


def _is_plain(image: Image.Image, raw: str) -> bool:
    """Whether decoders cannot disagree about a loaded image: 8 bits of grey or colour, opaque, upright, one frame."""
    modes = {"JPEG": ("RGB", "L"), "MPO": ("RGB", "L"), "WEBP": ("RGB",), "GIF": ("P", "L", "RGB")}
    kind = str(image.format)
    known = raw in _PLAIN_PNG if kind == "PNG" else image.mode in modes.get(kind, ())
    still = kind == "MPO" or not getattr(image, "is_animated", False)
    # Some decoders also rotate by XMP.
    upright = orientation(image) == 1 and b"tiff:Orientation" not in image.info.get("xmp", b"")
    return known and still and upright and not image.has_transparency_data and CANVAS not in image.info


def _damaged(error: BaseException) -> InvalidInput:
    return InvalidInput(
        f"the image file is damaged or ends early ({error}): send the whole file", reason="IMAGE_DAMAGED"
    )
