"""A small world with known truth, a tiny CLIP and a tiny LVLM, which replace real models in tests and demos.

It does not depend on other packages of this project, and services do not know it: they see datasets and model
directories.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["weights_dir"]


def weights_dir() -> Path:
    """The directory of the shipped weights (clip/, llava/, MODEL_CARD.md, metrics.json) of a checkout."""
    return Path(__file__).resolve().parent.parent / "weights"
