"""A candidate's randomness: one counter-based generator per candidate, keyed by its seed.

Draw t of a candidate is the t-th float64 in [0, 1) of NumPy's Philox-4x64-10 with the seed as key, so it depends only
on the seed: not on K, the order of candidates, the batch, or the number of tokens.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def derive(seed: int, count: int) -> list[int]:
    """`count` seeds derived from one: the first 8 bytes (little-endian, top bit cleared) of BLAKE2b of (seed, index).

    They fit a signed 64-bit column, and candidate i gets the same one for any K.
    """
    digests = (hashlib.blake2b(struct.pack("<QQ", seed, index), digest_size=8).digest() for index in range(count))
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


def uniforms(seeds: Sequence[int], count: int) -> npt.NDArray[np.float64]:
    """The first `count` draws of each seed: (seeds, count), in [0, 1)."""
    out = np.empty((len(seeds), count), dtype=np.float64)
    for row, seed in zip(out, seeds, strict=True):
        np.random.Generator(np.random.Philox(key=seed)).random(out=row)
    return out
