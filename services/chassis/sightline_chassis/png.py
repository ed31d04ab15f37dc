"""Filters PNG files before decoding: keeps only the chunks that the rule reads, and an animation's first frame.

Text (ComfyUI and others store whole workflows in it) and colour profiles are never inflated: a decoder that inflates
them can be made to unpack megabytes from a few bytes, or refuses a picture because of its text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sightline.pictures import png_chunk

MAGIC = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"))
_MOST_CHUNKS = 1 << 16  # 20 MiB pictures have a few thousand; walking more takes longer than decoding


def plain_png(content: bytes) -> tuple[bytes, tuple[int, int, int, int] | None]:
    """A PNG file reduced to what the rule reads.

    Args:
        content: a file that begins with `MAGIC`.

    Returns:
        The file, and (width, height, left, top) of the canvas if it shows only a part of it: the first frame of an
        animation whose default image is not a frame.

    Raises:
        ValueError: it has too many chunks for a picture.
    """
    kept: list[bytes] = [MAGIC]
    data, frame, end, plain, animated, shown = [], None, len(MAGIC), True, False, False
    for kind, start, end in _chunks(content):
        shown = shown or kind == b"IDAT"
        if kind in _KEPT:
            kept.append(content[start - 8 : end])
            continue
        plain = False
        if kind == b"acTL":
            animated = animated or not shown
        elif kind == b"fcTL" and animated:
            if frame is not None or not shown:
                animated = False  # the second frame, or the default image is the first one: all that counts is known
            elif end - start >= 24 + 4:
                frame = struct.unpack(">IIII", content[start + 4 : start + 20])
        elif kind == b"fdAT" and animated and frame is not None:
            data.append(content[start + 4 : end - 4])
    if plain:
        return content, None
    if frame is None or not data or not _fits(kept[1], frame):
        return b"".join([*kept, content[end:]]), None
    width, height, left, top = frame
    header = kept[1][8:-4]
    rest = [chunk for chunk in kept[2:] if chunk[4:8] not in (b"IDAT", b"IEND")]
    image = [png_chunk(b"IHDR", struct.pack(">II", width, height) + header[8:])]
    parts = [png_chunk(b"IDAT", part) for part in data]
    whole = struct.unpack(">II", header[:8])
    canvas = None if whole == (width, height) else (*whole, left, top)
    return b"".join([MAGIC, *image, *rest, *parts, png_chunk(b"IEND", b"")]), canvas


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, where the data starts and where the checksum ends, of every whole chunk up to the last one."""
    at, size = len(MAGIC), len(content)
    for _ in range(_MOST_CHUNKS):
        if at + 12 > size:
            return
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        end = at + 12 + length
        if end > size or not kind.isalpha():
            return  # it ends early or is damaged here: the decoder will report it
        yield kind, at + 8, end
        if kind == b"IEND":
            return
        at = end
    raise ValueError(f"over {_MOST_CHUNKS} chunks")


def _fits(header: bytes, frame: tuple[int, ...]) -> bool:
    """Whether a frame lies within the canvas."""
    if header[4:8] != b"IHDR" or len(header) < 8 + 13 + 4:
        return False
    whole = struct.unpack(">II", header[8:16])
    width, height, left, top = frame
    return bool(0 < width <= whole[0] - left and 0 < height <= whole[1] - top)
