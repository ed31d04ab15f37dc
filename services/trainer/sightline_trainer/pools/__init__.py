"""Pools: prompts and images from files of several kinds, drawn without ever holding them all in memory."""

from sightline_trainer.pools.pool import Pool
from sightline_trainer.pools.reference import load_prompts, open_pool, side_files

__all__ = ["Pool", "load_prompts", "open_pool", "side_files"]
