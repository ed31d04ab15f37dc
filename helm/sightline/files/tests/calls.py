"""helm test: call the scorer or the sampler as another team would, with a picture made here.

Usage: calls.py {scorer,sampler} TARGET; TLS_ROOT, TLS_CERTIFICATE, TLS_KEY and TOKEN_FILE name files where needed.
"""

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from sightline.channel import Tls


def red_png(side: int = 32) -> bytes:
    """A red square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\xff\0\0" * side for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def file(variable: str) -> Path | None:
    """The file that an environment variable names."""
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def access() -> dict[str, Any]:
    """What the clients need to be let in."""
    root, token = file("TLS_ROOT"), file("TOKEN_FILE")
    return {
        "tls": Tls(root, file("TLS_CERTIFICATE"), file("TLS_KEY")) if root else None,
        "token": token.read_text().strip() if token else None,
    }


def score(target: str) -> str:
    """Two texts of one picture."""
    from sightline.scorer import ScorerClient

    with ScorerClient(target, **access()) as scorer:
        scores = scorer.score(red_png(), ["a red square", "a blue circle"]).clip_score
    return f"scored: {scores.tolist()}" if len(scores) == 2 else sys.exit("two texts, but not two scores")


def sample(target: str) -> str:
    """One candidate, and who wrote it."""
    from sightline.sampler import SamplerClient

    with SamplerClient(target, **access()) as sampler:
        candidate = sampler.sample(red_png(), "Describe the picture.", n=1, max_tokens=8).candidates[0]
    return f"sampled: {candidate.text!r} by policy {candidate.policy_version}"


if __name__ == "__main__":
    service, target = sys.argv[1:]
    print({"scorer": score, "sampler": sample}[service](target))
