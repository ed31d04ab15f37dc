"""Odd pictures: files in every form that the picture rule names, each with the pixels that it shows.

What a PNG shows is worked out from its samples here, not by a decoder; of the lossy forms Pillow says what was stored,
and the turning and the white below it are worked out from that.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

ODD: dict[str, tuple[bytes, np.ndarray[Any, Any]]] = {}
"""By name: the file, and its pixels uint8 [H, W, 3]."""

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_RANDOM = np.random.default_rng(0)
W, H = 23, 14


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: Any, depth: int, colour: int, *before: bytes, after: tuple[bytes, ...] = ()) -> bytes:
    """A PNG of samples [H, W] or [H, W, C], with further chunks before and after its data."""
    height, width = samples.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", packed(samples, depth))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *before, data, *after, chunk(b"IEND", b"")])


def packed(samples: Any, depth: int) -> bytes:
    rows = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    elif depth == 8:
        lines = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        bits = (rows[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]
    return zlib.compress(b"".join(b"\0" + line for line in lines))


def noise(*shape: int, most: int = 256) -> np.ndarray[Any, Any]:
    return _RANDOM.integers(0, most, shape)


def on_white(colour: Any, alpha: Any) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3] by Pillow's own blending, with its rounding."""
    over = Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8), "RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB"))


def three(grey: Any) -> np.ndarray[Any, Any]:
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def photo(width: int = W, height: int = H) -> Image.Image:
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    waves = [128 + 100 * np.sin(across / (5 + k) + down / (7 - k)) for k in range(3)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def stored(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


TURNS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
         6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def _turned() -> Iterator[tuple[str, bytes, Any]]:
    forms: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}
    if features.check("avif"):
        forms["AVIF"] = {}
    for form, options in forms.items():
        for number, turn in TURNS.items():
            content = encoded(photo(), form, exif=exif(number), **options)
            if form == "AVIF":  # Pillow writes the turn as irot and imir
                yield f"{form} turned {number}", content, turn(stored(content))
            else:
                yield f"{form} turned {number}", content, turn(stored(encoded(photo(), form, **options)))
    yield "JPEG turned by XMP only", encoded(photo(), "JPEG", xmp=_XMP), stored(encoded(photo(), "JPEG"))
    yield "WEBP turned by XMP only", encoded(photo(), "WEBP", lossless=True, xmp=_XMP), np.asarray(photo())
    profile = b"Raw profile type exif\0" + b"\nexif\n 8\n" + exif(6).hex().encode()
    rgb = noise(H, W, 3)
    yield "PNG turned in a text", png(rgb, 8, RGB, chunk(b"tEXt", profile)), rgb
    yield "PNG turned after its data", png(rgb, 8, RGB, after=(chunk(b"eXIf", exif(6)[6:]),)), np.rot90(rgb, -1)
    yield "JPEG with a turn of 9", encoded(photo(), "JPEG", exif=exif(9)), stored(encoded(photo(), "JPEG"))


_XMP = (
    b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def _depths() -> Iterator[tuple[str, bytes, Any]]:
    for depth in (1, 2, 4, 8, 16):
        grey = noise(H, W, most=1 << depth)
        grey[0, 0] = clear = int(grey[3, 3])
        shown = grey >> 8 if depth == 16 else grey * (255 // ((1 << depth) - 1))
        yield f"PNG grey {depth}", png(grey, depth, GREY), three(shown)
        holes = np.where(grey == clear, 255, shown)
        key = chunk(b"tRNS", struct.pack(">H", clear))
        yield f"PNG grey {depth} tRNS", png(grey, depth, GREY, key), three(holes)
    for depth in (8, 16):
        high = depth - 8
        colour, grey, alpha = (noise(H, W, *n, most=1 << depth) for n in ((3,), (), ()))
        alpha[0], alpha[1] = 0, (1 << depth) - 1
        yield f"PNG RGB {depth}", png(colour, depth, RGB), colour >> high
        both = np.dstack([colour, alpha])
        yield f"PNG RGBA {depth}", png(both, depth, RGBA), on_white(colour >> high, alpha >> high)
        both = np.dstack([grey, alpha])
        yield f"PNG grey alpha {depth}", png(both, depth, GREY_ALPHA), on_white(three(grey >> high), alpha >> high)
        key = chunk(b"tRNS", struct.pack(">HHH", *colour[5, 5].tolist()))
        colour[6, 6] = colour[5, 5]
        hole = (colour == colour[5, 5]).all(axis=2)[:, :, None]
        yield f"PNG RGB {depth} tRNS", png(colour, depth, RGB, key), np.where(hole, 255, colour >> high)
    near = np.full((H, W, 3), 0x1234)
    near[:, ::2] += 1  # the high bytes are equal: only 16 bits show the difference
    key = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x1234, 0x1234))
    yield "PNG RGB 16 tRNS near", png(near, 16, RGB, key), np.where(near == 0x1234, 255, near >> 8)
    small = np.where(noise(H, W, 3, most=2) == 0, 7, 0x0700)
    key = chunk(b"tRNS", struct.pack(">HHH", 7, 7, 7))
    hole = (small == 7).all(axis=2)[:, :, None]
    yield "PNG RGB 16 tRNS small", png(small, 16, RGB, key), np.where(hole, 255, small >> 8)
    grey = np.full((H, W), 0x8000)
    grey[:, ::3] = 0x8001
    key = chunk(b"tRNS", struct.pack(">H", 0x8001))
    yield "PNG grey 16 tRNS near", png(grey, 16, GREY, key), three(np.where(grey == 0x8001, 255, 0x80))
    yield "PNG grey 16 of 40000", png(np.full((H, W), 40000), 16, GREY), three(np.full((H, W), 156))


def _palettes() -> Iterator[tuple[str, bytes, Any]]:
    for depth in (1, 2, 4, 8):
        index, colours = noise(H, W, most=1 << depth), noise(1 << depth, 3)
        table = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        yield f"PNG palette {depth}", png(index, depth, PALETTE, table), colours[index]
        alpha = noise(1 << depth)
        key = chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
        yield (
            f"PNG palette {depth} alpha",
            png(index, depth, PALETTE, table, key),
            on_white(colours[index], alpha[index]),
        )
        alpha[:], alpha[1] = 255, 0
        key = chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
        shown = np.where((index == 1)[:, :, None], 255, colours[index])
        yield f"PNG palette {depth} hole", png(index, depth, PALETTE, table, key), shown


def _others() -> Iterator[tuple[str, bytes, Any]]:
    cmyk = photo().convert("CMYK")
    for name, content in {
        "JPEG progressive": encoded(photo(), "JPEG", progressive=True),
        "JPEG grey": encoded(photo().convert("L"), "JPEG"),
        "JPEG CMYK": encoded(cmyk, "JPEG"),
        "JPEG YCCK": _ycck(cmyk),
        "JPEG with a profile": encoded(photo(), "JPEG", icc_profile=_profile()),
        "MPO": encoded(photo(), "MPO", save_all=True, append_images=[photo().transpose(Image.Transpose.ROTATE_180)]),
        "GIF": encoded(photo().quantize(16), "GIF"),
        "GIF grey": encoded(photo().convert("L"), "GIF"),
        "GIF animated": encoded(photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (W, H), "red")]),
        "WEBP": encoded(photo(), "WEBP"),
        "WEBP animated": encoded(photo(), "WEBP", save_all=True, append_images=[Image.new("RGB", (W, H), "red")]),
        "JPEG 1 x 1": encoded(photo(1, 1), "JPEG"),
        "JPEG 1 x 900": encoded(photo(1, 900), "JPEG"),
        "JPEG 900 x 1": encoded(photo(900, 1), "JPEG"),
        "PNG interlaced": _INTERLACED,
        **({"AVIF": encoded(photo(), "AVIF")} if features.check("avif") else {}),
    }.items():
        yield name, content, stored(content)
    for width, height in ((1, 1), (1, 900), (900, 1)):
        yield f"PNG {width} x {height}", encoded(photo(width, height), "PNG"), np.asarray(photo(width, height))
    clear = photo().quantize(16)
    index = np.asarray(clear)
    shown = np.where((index == 3)[:, :, None], 255, np.asarray(clear.convert("RGB")))
    yield "GIF transparent", encoded(clear, "GIF", transparency=3, optimize=False), shown
    alpha = photo()
    alpha.putalpha(Image.fromarray(noise(H, W).astype(np.uint8)))
    for form, options in (
        ("WEBP", {"lossless": True, "exact": True}),
        *([("AVIF", {})] if features.check("avif") else []),
    ):
        content = encoded(alpha, form, **options)
        both = np.asarray(Image.open(io.BytesIO(content)))
        yield f"{form} alpha", content, on_white(both[:, :, :3], both[:, :, 3])
    frames = {"save_all": True, "append_images": [alpha], "lossless": True, "exact": True}
    both = np.asarray(alpha)
    yield "WEBP animated alpha", encoded(alpha, "WEBP", **frames), on_white(both[:, :, :3], both[:, :, 3])


def _png_chunks() -> Iterator[tuple[str, bytes, Any]]:
    rgb = noise(H, W, 3)
    big, bomb = b"x" * (3 << 20), zlib.compress(bytes(200 << 20), 9)
    more = {
        "big iTXt": chunk(b"iTXt", b"workflow\0\0\0\0\0" + big),
        "big packed iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(big)),
        "zTXt bomb": chunk(b"zTXt", b"workflow\0\0" + bomb),
        "iTXt bomb": chunk(b"iTXt", b"workflow\0\1\0\0\0" + bomb),
        "iCCP bomb": chunk(b"iCCP", b"profile\0\0" + bomb),
        "many texts": chunk(b"tEXt", b"a\0" + b"y" * (1 << 20)) * 8,
        "profile": chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(_profile())),
        "other chunks": b"".join(
            chunk(kind, data)
            for kind, data in ((b"gAMA", b"\0\0\xb1\x8f"), (b"pHYs", bytes(9)), (b"prVt", b"own"), (b"tIME", bytes(7)))
        ),
    }
    for name, chunks in more.items():
        yield f"PNG {name}", png(rgb, 8, RGB, chunks), rgb
        if name != "profile":
            yield f"PNG {name} after its data", png(rgb, 8, RGB, after=(chunks,)), rgb


def _apng() -> Iterator[tuple[str, bytes, Any]]:
    first, second = noise(H, W, 3), noise(H, W, 3)
    start = chunk(b"acTL", struct.pack(">II", 2, 0))

    def control(number: int, width: int = W, height: int = H, left: int = 0, top: int = 0, blend: int = 0) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, top, 1, 10, 0, blend))

    def data(number: int, samples: Any) -> bytes:
        return chunk(b"fdAT", struct.pack(">I", number) + packed(samples, 8))

    inside = png(first, 8, RGB, start, control(0), after=(control(1), data(2, second)))
    yield "APNG", inside, first
    third = noise(H, W, 3)
    rest = (control(0), data(1, second), control(2), data(3, third))
    yield "APNG default outside", png(first, 8, RGB, start, after=rest), second
    over = (control(0, blend=1), data(1, second), control(2), data(3, third))
    yield "APNG default outside, blended", png(first, 8, RGB, start, after=over), second
    part = second[:5, :9]
    rest = (control(0, 9, 5, 4, 3, 1), data(1, part), control(2), data(3, third))
    placed = np.full((H, W, 3), 255)
    placed[3:8, 4:13] = part
    yield "APNG default outside, first frame small", png(first, 8, RGB, start, after=rest), placed
    half = packed(second, 8)
    pieces = (chunk(b"fdAT", struct.pack(">I", n) + half[i:j]) for n, i, j in ((1, 0, 50), (2, 50, len(half))))
    yield "APNG default outside, in pieces", png(first, 8, RGB, start, after=(control(0), *pieces)), second
    key = chunk(b"tRNS", struct.pack(">HHH", *second[2, 2].tolist()))
    hole = (second == second[2, 2]).all(axis=2)[:, :, None]
    again = (control(0), data(1, second), control(2), data(3, third))
    shown = np.where(hole, 255, second)
    yield "APNG default outside, tRNS", png(first, 8, RGB, start, key, after=again), shown
    turned = chunk(b"eXIf", exif(6)[6:])
    yield "APNG default outside, turned", png(first, 8, RGB, start, turned, after=again), np.rot90(second, -1)


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _ycck(cmyk: Image.Image) -> bytes:
    """A JPEG of CMYK whose Adobe marker says that its four channels are YCCK."""
    content = encoded(cmyk, "JPEG")
    at = content.index(b"Adobe")
    return content[: at + 11] + b"\x02" + content[at + 12 :]


def _interlaced() -> bytes:
    """An Adam7 PNG of 8 x 8 grey, written by hand."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    grey = noise(8, 8).astype(np.uint8)
    lines = b"".join(
        b"\0" + row.tobytes() for top, left, down, across in passes for row in grey[top::down, left::across]
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, GREY, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


_INTERLACED = _interlaced()

for _make in (_turned, _depths, _palettes, _others, _png_chunks, _apng):
    for _name, _content, _shown in _make():
        ODD[_name] = (_content, np.ascontiguousarray(_shown).astype(np.uint8))
