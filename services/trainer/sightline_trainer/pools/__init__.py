"""Pools: prompts and images from files of several kinds, drawn without holding all in memory."""

from sightline_trainer.pools.dataset_name import load_prompts, open_pool, side_files
from sightline_trainer.pools.held_out import hold_out
from sightline_trainer.pools.pool import Pool

__all__ = ["Pool", "hold_out", "load_prompts", "open_pool", "side_files"]
