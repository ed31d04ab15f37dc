"""A small world with known truth, its tiny CLIP and its tiny LVLM: they stand for real ones until those are at hand.

It depends on no other package of this project, and no service knows of it: they see datasets and model directories.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["weights_dir"]


def weights_dir() -> Path:
    """The directory of the shipped weights (clip/, llava/, MODEL_CARD.md, metrics.json) of a checkout."""
    return Path(__file__).resolve().parent.parent / "weights"
