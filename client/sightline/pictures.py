"""From what callers hand to a client as an image to an encoded file. Light: Pillow is not needed for its pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from sightline.errors import InvalidInput


@runtime_checkable
class Saveable(Protocol):
    """A picture of Pillow; it is sent as PNG, without loss."""

    def save(self, fp: Any, format: str, **options: Any) -> None:
        """Write the picture as a file."""


Picture: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Saveable
"""The bytes of an encoded image (JPEG, PNG, WebP or GIF), the path of such a file, or a picture of Pillow."""


def image_bytes(image: object, takes: str = "bytes, a path or a Pillow picture") -> bytes:
    """The encoded file of a `Picture`.

    Args:
        image: what the caller gave.
        takes: what the call takes as an image, for the message.

    Raises:
        InvalidInput: the file cannot be read, or it is no image, or a picture that cannot be written as PNG.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InvalidInput(
                f"the image {os.fspath(image)[:200]} cannot be read: {why}", reason="IMAGE_FILE_UNREADABLE"
            ) from error
    if isinstance(image, Saveable):
        file = io.BytesIO()
        try:
            image.save(file, "PNG", compress_level=1)
        except Exception as error:  # pictures that are damaged, closed or of a mode that PNG has not: all kinds
            raise InvalidInput(
                f"the picture cannot be written as PNG: {type(error).__name__}: {error}", reason="IMAGE_UNUSABLE"
            ) from error
        return file.getvalue()
    raise InvalidInput(f"an image is {takes}, not {type(image).__name__}", reason="IMAGE_UNUSABLE")
