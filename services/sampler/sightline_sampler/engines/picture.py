"""A picture to test an engine: blocks of colours that do not repeat, so that the image tower's weights matter."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from sightline_sampler.engines.base import EncodedImage


def colours() -> EncodedImage:
    """96 x 96 pixels; the same at every call."""
    rows = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(rows.repeat(16, axis=0).repeat(16, axis=1)).save(file, "PNG")
    content = file.getvalue()
    return EncodedImage(content, hashlib.sha256(content).hexdigest())
