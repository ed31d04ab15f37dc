"""Convert the pictures of datasets and frameworks to types that the clients accept."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any

from sightline.errors import InvalidInput
from sightline.pictures import ArrayLike, Readable, Saveable
from sightline.scorer.wire import Image, ImageDigest, ImageUri

_DATA_URI = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+-]+=[^;,]{0,100}){0,10};base64,", re.ASCII | re.IGNORECASE)
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)


def image_of(value: Any, *, files: bool = True) -> Image:
    """The image in a field of a dataset or a message.

    Args:
        value: encoded bytes, a Pillow picture, a uint8 array or tensor, an open file, a path,
            "data:image/png;base64,...", "sha256:<64 hexadecimal digits>", an http(s) URI (fetched by the service, if
            its settings allow that), or a mapping with one of the keys `bytes`, `path`, `image`, `url` or `sha256`, as
            `datasets` and chat messages have it.
        files: whether to read paths on this machine. Must be False for untrusted input.

    Raises:
        InvalidInput: it is none of these.
    """
    if isinstance(value, Mapping):
        return _of_mapping(value, files)
    if isinstance(value, bytes | bytearray | memoryview | ImageDigest | ImageUri):
        return value
    if isinstance(value, str):
        return _of_string(value, files)
    if isinstance(value, Saveable | Readable | ArrayLike) or (files and isinstance(value, os.PathLike)):
        return value
    raise InvalidInput(
        f"a {type(value).__name__} is not an image: give bytes, a Pillow picture, a path or a data URI",
        reason="IMAGE_MISSING" if value is None else "IMAGE_UNUSABLE",
    )


def base64_bytes(text: str) -> bytes:
    """The bytes of base64 text (it may contain white space) or of a data URI. Raises InvalidInput."""
    if text[:5].lower() == "data:":
        match = _DATA_URI.match(text[:2000])
        if match is None:
            raise InvalidInput(
                f"the data URI {text[:60]!r} cannot be used: it must be data:image/...;base64,...",
                reason="DATA_URI_UNUSABLE",
            )
        text = text[match.end() :]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"the image is not base64: {error}", reason="BASE64_MALFORMED") from None


def _of_string(text: str, files: bool) -> Image:
    if text[:5].lower() == "data:":
        return base64_bytes(text)
    if match := _DIGEST.fullmatch(text):
        return ImageDigest(match[1])
    if text.startswith(("http://", "https://")):
        return ImageUri(text)
    if files:
        return text.removeprefix("file://")
    raise InvalidInput(
        f"{text[:80]!r} names no image: give data:image/...;base64,..., sha256:<digest> or an http(s) URI",
        reason="IMAGE_UNUSABLE",
    )


def _of_mapping(value: Mapping[str, Any], files: bool) -> Image:
    if value.get("sha256") is not None:
        return ImageDigest(str(value["sha256"]))
    for key in ("bytes", "image", "path", "url", "image_url"):
        inner = value.get(key)
        if inner is not None:
            if key == "bytes" and isinstance(inner, str):
                return base64_bytes(inner)
            return image_of(inner, files=files)
    raise InvalidInput(
        f"there is no image under the keys {', '.join(map(str, value)) or '(none)'}: one of bytes, image, path, url, "
        "sha256",
        reason="IMAGE_MISSING",
    )
