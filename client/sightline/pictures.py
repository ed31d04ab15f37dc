"""Convert a caller's image to an encoded file with the same pixels.

Light: Pillow is needed only for its own pictures, and not imported otherwise.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from sightline.errors import InvalidInput
from sightline.picture_rule import rgb

TAKES = "bytes, a path, an open file, a Pillow picture, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W]"
_OWN_FILE = ("JPEG", "MPO", "PNG", "WEBP", "GIF")  # what every service reads


@runtime_checkable
class Saveable(Protocol):
    """A Pillow picture, of any mode."""

    def save(self, fp: Any, format: str, **options: Any) -> None:
        """Write the picture as a file."""


@runtime_checkable
class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Some of its bytes."""


@runtime_checkable
class ArrayLike(Protocol):
    """An array of NumPy or a tensor of PyTorch, uint8."""

    @property
    def shape(self) -> Any:
        """[H, W, 3] for an array, [3, H, W] for a tensor."""

    @property
    def dtype(self) -> Any:
        """uint8."""


Picture: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Saveable | Readable | ArrayLike
"""An encoded image (JPEG, PNG, WebP, GIF, AVIF) as bytes, path or open file; or pixels: a Pillow picture of any mode, a
uint8 array [H, W, 3], a uint8 tensor [3, H, W]. Pixels are sent as PNG, without loss."""


def image_bytes(image: object, takes: str = TAKES) -> bytes:
    """The encoded file of a `Picture`.

    Args:
        image: the caller's image.
        takes: what the call accepts as an image, for the message.

    Raises:
        InvalidInput: the file cannot be read, it is not an image, or the picture cannot be read or has no pixels.
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
    if _of_pillow(image):
        try:
            return _own_file(image) or write_png(np.asarray(rgb(cast(Any, image))))
        except Exception as error:  # damaged or closed pictures raise all kinds of errors
            raise InvalidInput(
                f"the picture cannot be read: {type(error).__name__}: {error}", reason="IMAGE_UNUSABLE"
            ) from error
    if isinstance(image, Readable):
        return _read(image)
    if isinstance(image, ArrayLike):
        return write_png(_pixels(image))
    raise InvalidInput(f"an image is {takes}, not {type(image).__name__}", reason="IMAGE_UNUSABLE")


def write_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file of uint8 pixels [H, W, 3], at zlib's fastest setting. Raises ValueError if there are no pixels."""
    height, width, _ = pixels.shape
    if not height or not width:
        raise ValueError(f"{width} x {height} pixels are not a picture")
    rows = pixels.reshape(height, width * 3)
    lines = np.empty((height, 1 + width * 3), dtype=np.uint8)
    lines[:, 0] = 1  # the filter "Sub": each byte minus that of the pixel to its left
    lines[:, 1:4] = rows[:, :3]
    np.subtract(rows[:, 3:], rows[:, :-3], out=lines[:, 4:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file: length, kind, data and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _of_pillow(image: object) -> Any:
    pillow = sys.modules.get("PIL.Image")  # a caller with a Pillow picture has imported it
    return pillow is not None and isinstance(image, pillow.Image)


def _own_file(image: Any) -> bytes | None:
    """The file of a picture that was opened and not changed since: it is smaller, and its digest is known."""
    if not getattr(image, "tile", None) or image.format not in _OWN_FILE or image.tell() != 0:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    again = sys.modules["PIL.Image"].open(io.BytesIO(content), formats=_OWN_FILE[:1] + _OWN_FILE[2:])
    untouched = (again.mode, again.size, again.info) == (image.mode, image.size, image.info)
    return bytes(content) if untouched else None


def _read(file: Any) -> bytes:
    try:
        if hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable()):
            file.seek(0)  # as Pillow does: after a picture was written, the position is at the file's end
        content = file.read()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the image's file cannot be read: {error}", reason="IMAGE_FILE_UNREADABLE") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise InvalidInput(
            f'the image\'s file gives {type(content).__name__}, not bytes: open it with mode "rb"',
            reason="IMAGE_FILE_UNREADABLE",
        )
    return bytes(content)


def _pixels(image: Any) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3] from an array, or from a tensor [3, H, W]."""
    tensor = hasattr(image, "detach")
    if tensor:
        image = image.detach().cpu()
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise InvalidInput(f"pixels are uint8, 0 to 255, not {image.dtype}: convert them", reason="IMAGE_UNUSABLE")
    pixels = np.asarray(image)
    shape, wanted = list(pixels.shape), "a tensor [3, H, W]" if tensor else "an array [H, W, 3]"
    if tensor and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InvalidInput(f"pixels are {wanted}, RGB, not {shape}", reason="IMAGE_UNUSABLE")
    return np.ascontiguousarray(pixels)
