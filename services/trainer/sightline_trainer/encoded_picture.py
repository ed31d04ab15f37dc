"""EncodedPicture: a picture in the form that HTTP services accept."""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path

import numpy as np
from sightline.pictures import write_png
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

_REMEMBERED = 32


@lru_cache(_REMEMBERED)
def png_base64(image: Path) -> str:
    """The picture as read by the one rule, as a PNG in base64, so that other decoders see the same. A judge asks many
    questions about one picture."""
    picture = np.asarray(decode(image.read_bytes(), ImageLimits()), dtype=np.uint8)
    return base64.b64encode(write_png(picture)).decode()
