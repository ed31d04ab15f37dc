"""Entry point of the sampler. Settings are read before PyTorch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline_chassis.service import Service

    from sightline_sampler.settings import SamplerSettings


def main(config: Path | None, overrides: Sequence[str]) -> int:
    """Serve until a signal; see `sightline_chassis.process.run` for arguments and exit codes."""
    from sightline_chassis.process import run

    from sightline_sampler.settings import SamplerSettings

    return run("sampler", SamplerSettings, _make, config=config, overrides=overrides)


def _make(settings: SamplerSettings) -> Service:
    # Threads that spin while they wait are many times slower on shared cores. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sightline_sampler.service import SamplerService

    return SamplerService(settings)
