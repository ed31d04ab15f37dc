"""Running: locations of the tests' services and models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "playground/weights"


@dataclass(frozen=True)
class Services:
    """Addresses of a running scorer (with embedded Triton) and sampler on the playground's models."""

    scorer: str
    sampler: str
    metrics: dict[str, str]


def small_recipe(services: Services, playground: Path, **values: Any) -> dict[str, Any]:
    """A recipe of two short iterations on the playground's models; `values` replace its own."""
    return {
        "name": "small",
        "model": str(WEIGHTS / "llava"),
        "iterations": 2,
        "threads": 1,
        "data": {
            "train": str(playground / "train"),
            "test": str(playground / "test"),
            "prompts_per_iteration": 24,
        },
        "sampling": {"address": services.sampler, "candidates": 4},
        "reward": {"address": services.scorer},
        "evaluation": {"prompts": 24},
        **values,
    }
