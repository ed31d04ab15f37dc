"""Encoded images: limits checked before anything is decoded, and a small store of those sent before."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict

from PIL import Image, ImageOps, UnidentifiedImageError
from sightline.errors import InvalidInput, NotFound
from sightline.sampler.v1 import sampler_pb2 as pb

from sightline_sampler.engines.base import EncodedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def decode(content: bytes, *, max_pixels: int) -> Image.Image:
    """An encoded image as RGB, upright (EXIF), the first frame of an animation.

    Raises:
        InvalidInput: it is no JPEG, PNG, WebP or GIF, is damaged, or has too many pixels (seen from its header).
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidInput(
                    f"the image has {width} x {height} pixels; the limit is {max_pixels}",
                    reason="IMAGE_TOO_LARGE",
                    metadata={"limit_pixels": str(max_pixels)},
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except InvalidInput:
        raise
    except UnidentifiedImageError:
        raise InvalidInput(
            f"the image ({len(content)} bytes) is no {', '.join(FORMATS)} file", reason="IMAGE_UNREADABLE"
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise InvalidInput(f"the image cannot be decoded: {error}", reason="IMAGE_UNREADABLE") from error


def upright(content: bytes, *, max_pixels: int) -> bytes:
    """The same bytes for an engine that decodes them itself; a picture that EXIF turns is encoded again as PNG, turned,
    because engines do not agree on whether to look at EXIF.

    Raises:
        InvalidInput: as `decode`.
    """
    picture = decode(content, max_pixels=max_pixels)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.getexif().get(0x0112, 1) == 1:
            return content
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def media_type(content: bytes) -> str:
    """The MIME type that an encoded image's first bytes say.

    Raises:
        InvalidInput: they are of no JPEG, PNG, WebP or GIF.
    """
    for magic, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif")):
        if content.startswith(magic):
            return f"image/{kind}"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise InvalidInput(f"the image ({len(content)} bytes) is no {', '.join(FORMATS)} file", reason="IMAGE_UNREADABLE")


class RequestImages:
    """Encoded images of past requests by SHA-256, least recently used out first. For the event loop's thread."""

    def __init__(self, *, max_bytes: int, max_image_bytes: int) -> None:
        self._max_bytes, self._max_image_bytes = max_bytes, max_image_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def resolve(self, image: pb.Image) -> EncodedImage:
        """The image of a request, from its bytes or by the digest of one sent before.

        Raises:
            InvalidInput: empty, too large, or a digest of the wrong size.
            NotFound: no image of that digest is kept; send its bytes.
        """
        match image.WhichOneof("source"):
            case "content":
                return self._put(image.content)
            case "sha256":
                return self._get(image.sha256)
            case _:
                raise InvalidInput("the image has neither content nor sha256", reason="IMAGE_EMPTY")

    def _put(self, content: bytes) -> EncodedImage:
        if not content:
            raise InvalidInput("the image has 0 bytes", reason="IMAGE_EMPTY")
        if len(content) > self._max_image_bytes:
            raise InvalidInput(
                f"the image has {len(content)} bytes; the limit is {self._max_image_bytes}",
                reason="IMAGE_TOO_LARGE",
                metadata={"limit_bytes": str(self._max_image_bytes)},
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._kept and len(content) <= self._max_bytes:
            self._kept[digest] = content
            self._bytes += len(content)
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return EncodedImage(content, digest)

    def _get(self, sha256: bytes) -> EncodedImage:
        if len(sha256) != 32:
            raise InvalidInput(f"image.sha256 has {len(sha256)} bytes, not 32", reason="BAD_DIGEST")
        digest = sha256.hex()
        content = self._kept.get(digest)
        if content is None:
            raise NotFound(f"no image {digest} is kept here: send its bytes", reason="IMAGE_NOT_FOUND")
        self._kept.move_to_end(digest)
        return EncodedImage(content, digest)
