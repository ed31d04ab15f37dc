"""Which files are certainly quick to decode, judged by their bytes.

Thirty-two kilobytes can hold a picture that takes seconds: texts and profiles that inflate to megabytes, a thousand
scans of a progressive JPEG, an animation. So a file counts as small only if it contains nothing but a few pixels.
"""

from __future__ import annotations

import struct

MOST_BYTES = 32 * 1024
MOST_PIXELS = 128 * 128
_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"sRGB", b"pHYs", b"cHRM", b"bKGD", b"sBIT"}
_SEGMENTS = {0xE0, 0xDB, 0xC4, 0xDD, 0xFE}  # APP0, tables, restart interval, comment
_MOST_SCANS = 4


def small_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or baseline JPEG that is certainly quick to decode; None for everything else
    (expensive, damaged or unusual)."""
    if len(content) > MOST_BYTES:
        return None
    try:
        size = _png(content) if content.startswith(b"\x89PNG\r\n\x1a\n") else _jpeg(content)
    except (struct.error, IndexError):
        return None
    if size is None or not 0 < size[0] * size[1] <= MOST_PIXELS:
        return None
    return size


def _png(content: bytes) -> tuple[int, int] | None:
    at, size = 8, None
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind not in _CHUNKS:
            return None
        if kind == b"IHDR":
            if size is not None:
                return None
            size = struct.unpack_from(">II", content, at + 8)
        if kind == b"IEND":
            return size
        at += 12 + length
    return None


def _jpeg(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(b"\xff\xd8") or content.count(b"\xff\xda") > _MOST_SCANS:
        return None
    at, size = 2, None
    while True:
        mark, kind, length = struct.unpack_from(">BBH", content, at)
        if mark != 0xFF:
            return None
        if kind == 0xDA:
            return size
        if kind in (0xC0, 0xC1):
            if size is not None:
                return None
            height, width = struct.unpack_from(">HH", content, at + 5)
            size = (width, height)
        elif kind not in _SEGMENTS:
            return None
        at += 2 + length
