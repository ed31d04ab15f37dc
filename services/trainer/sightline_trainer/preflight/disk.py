"""Disk: estimates the space of a run's files, compared with the free space in its directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from sightline_trainer.preflight.finding import Finding
from sightline_trainer.preflight.memory import gib
from sightline_trainer.preflight.sizes import Sizes
from sightline_trainer.recipe import Recipe

_TOKEN_BYTES = 16  # id, log-prob and characters of a sampled token, before compression


def needed(recipe: Recipe, sizes: Sizes, *, prompts: int, image_bytes: float) -> int:
    """Estimated bytes of all iterations.

    Args:
        prompts: prompts of one iteration.
        image_bytes: mean size of an image file; each pair stores its image.
    """
    policy = 4 * (sizes.parameters if recipe.dpo.train == "full" else sizes.trained)
    optimizer = 8 * sizes.trained if recipe.dpo.carry == "optimizer" else 0
    own = 12 * sizes.trained  # weights and AdamW's moments; two at a time
    checkpoints = 2 * own if recipe.dpo.seconds_between_checkpoints is not None else 0
    candidates = prompts * recipe.sampling.candidates * recipe.sampling.max_tokens * _TOKEN_BYTES
    return int(recipe.iterations * (policy + optimizer + candidates + prompts * image_bytes)) + checkpoints


def too_full(bytes_needed: int, directory: Path, *, strict: bool) -> Iterator[Finding]:
    """DISK_TOO_SMALL. A run's start only warns: the free space may change, and a run can resume after a full disk."""
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < bytes_needed:
        yield Finding(
            "DISK_TOO_SMALL",
            f"the run's files will take about {gib(bytes_needed)}, and {directory} has {gib(free)} free",
            "free some space, name a --run directory elsewhere, or run fewer iterations",
            "error" if strict else "warning",
        )
