"""Images: limits before decoding, EXIF, transparency, and the store of what was sent before."""

import hashlib
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image
from sightline import InvalidInput, NotFound
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_sampler.images import RequestImages, decode


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(InvalidInput) as error:
        decode(bomb, max_pixels=10**6)
    assert error.value.reason in ("IMAGE_TOO_LARGE", "IMAGE_UNREADABLE")
    assert "100000" in str(error.value) or "bomb" in str(error.value)


def test_pictures_are_upright_and_rgb() -> None:
    wide = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode(encoded(wide, "JPEG", exif=exif), max_pixels=1000).size == (20, 40)
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        form = "JPEG" if mode == "CMYK" else "PNG"
        image = decode(encoded(Image.new(mode, (5, 4)), form), max_pixels=1000)
        assert (image.mode, image.size) == ("RGB", (5, 4))
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(animated, max_pixels=1000).size == (4, 4)


def test_the_store_forgets_what_was_used_longest_ago() -> None:
    store = RequestImages(max_bytes=25, max_image_bytes=20)
    contents = [bytes([i]) * 10 for i in range(3)]
    digests = [hashlib.sha256(content).digest() for content in contents]
    for content in contents[:2]:
        assert store.resolve(pb.Image(content=content)).content == content
    assert store.resolve(pb.Image(sha256=digests[0])).digest == digests[0].hex()
    store.resolve(pb.Image(content=contents[2]))
    assert store.resolve(pb.Image(sha256=digests[0])).content == contents[0]
    with pytest.raises(NotFound, match="send its bytes"):
        store.resolve(pb.Image(sha256=digests[1]))
    with pytest.raises(InvalidInput, match="21 bytes; the limit is 20"):
        store.resolve(pb.Image(content=bytes(21)))
    with pytest.raises(InvalidInput, match="0 bytes"):
        store.resolve(pb.Image(content=b""))
    with pytest.raises(InvalidInput, match="neither"):
        store.resolve(pb.Image())
