"""Running: where the tests' services and models are."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "playground/weights"


@dataclass(frozen=True)
class Services:
    """Addresses of a running scorer (with embedded Triton) and sampler on the playground's models."""

    scorer: str
    sampler: str
    metrics: dict[str, str]
