"""The one rule for reading a picture, for every service, the update and the SDK: from Pillow's picture to RGB.

- The picture is turned upright by its EXIF orientation, as people see it. XMP is ignored: half of all programs ignore
  it.
- Transparency is put on white: alpha, palettes with alpha, and the transparent colour of PNG's tRNS, which is compared
  in the file's own bit depth.
- 16-bit values keep their high byte. Pillow converts CMYK, YCCK, LAB and all other modes.
- An animation counts as its first frame.

`PICTURE_RULE` names this behaviour in the digests, manifests and runs that depend on it: change it when the behaviour
changes. Pillow is imported only if there is a Pillow picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

PICTURE_RULE = "1"
"""The version of the rule. Sightline 0.1.0 had none: its services read the same picture differently."""

CANVAS = "canvas"
"""Key of a picture's `info`: (width, height, left, top), if it is a part of a larger, transparent picture."""

_ORIENTATION = 0x0112
_GREY_STEPS = {"1": 255, "L;1": 255, "L;2": 85, "L;4": 17}  # factors for PNG's 1, 2 and 4 bits of grey


def rgb(image: Image.Image) -> Image.Image:
    """A picture by the rule: upright, mode RGB. The given picture is loaded but not changed.

    Raises the errors of Pillow's decoders: OSError, SyntaxError, ValueError and others.
    """
    raw = raw_mode(image)
    low = _low_bytes(image) if raw == "RGB;16B" and "transparency" in image.info else None
    image.load()
    return _turned(_placed(_opaque(image, raw, low), image), orientation(image))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of a loaded picture; 1 if there is none, or none that can be read."""
    from PIL import Image as pillow

    exif = image.info.get("exif")
    if not exif:
        return 1
    try:
        tags = pillow.Exif()
        tags.load(exif)
        found = tags.get(_ORIENTATION, 1)
        return found if isinstance(found, int) and 1 <= found <= 8 else 1
    except Exception:  # broken EXIF has no orientation; the picture itself is fine
        return 1


def raw_mode(image: Image.Image) -> str:
    """How the file of a picture that is not loaded yet stores a pixel; "" if that is no longer known."""
    tiles = getattr(image, "tile", None)
    if not tiles or getattr(image, "format", None) != "PNG":
        return ""
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) else args)


def _low_bytes(image: Any) -> np.ndarray[Any, Any]:
    """The low bytes, uint8 [H, W, 3], of a PNG of 16-bit RGB: Pillow drops them."""
    import io

    from PIL import Image as pillow

    position = image.fp.tell()
    image.fp.seek(0)
    again: Any = pillow.open(io.BytesIO(image.fp.read()), formats=("PNG",))
    image.fp.seek(position)
    again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]  # reads the file's second byte as the high one
    return np.asarray(again)


def _opaque(image: Image.Image, raw: str, low: np.ndarray[Any, Any] | None) -> Image.Image:
    """Mode RGB, transparency on white, not yet turned upright."""
    from PIL import Image as pillow

    clear = image.info.get("transparency")
    if image.mode == "RGB" and clear is None:
        return image
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return _on_white((values >> 8).astype(np.uint8), values == clear if isinstance(clear, int) else None)
    if image.mode in ("1", "L") and isinstance(clear, int):
        if raw in _GREY_STEPS and image.mode == "L":
            clear = (clear * _GREY_STEPS[raw]) & 0xFF
        grey = np.asarray(image.convert("L"))
        return _on_white(grey, grey == (clear & 0xFF))
    if image.mode == "RGB" and isinstance(clear, tuple):
        pixels, colour = np.asarray(image), np.array(clear, dtype=np.int64)
        if low is not None:
            found = (pixels == colour >> 8) & (low == (colour & 0xFF))
        else:
            found = pixels == (colour >> 8 if colour.max() > 255 else colour)
        return _on_white(pixels, found.all(axis=2))
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow.alpha_composite(white, image)
    if image.mode == "F":
        image = image.convert("L")
    return image.convert("RGB")


def _on_white(pixels: np.ndarray[Any, Any], clear: np.ndarray[Any, Any] | None) -> Image.Image:
    from PIL import Image as pillow

    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if clear is not None:
        pixels = np.where(clear[:, :, None], np.uint8(255), pixels)
    return pillow.fromarray(np.ascontiguousarray(pixels))


def _placed(picture: Image.Image, image: Image.Image) -> Image.Image:
    from PIL import Image as pillow

    if CANVAS not in image.info:
        return picture
    width, height, left, top = image.info[CANVAS]
    canvas = pillow.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(picture, (left, top))
    return canvas


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image as pillow

    way = pillow.Transpose
    ways = {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }
    return picture.transpose(ways[orientation]) if orientation in ways else picture
