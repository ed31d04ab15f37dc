"""Entry point of the sampler. Settings are read before PyTorch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(config: Path | None, overrides: Sequence[str]) -> int:
    """Serves until told to stop.

    Args:
        config: a YAML file of settings, or None.
        overrides: "section.key=value" from the command line.

    Returns:
        The exit code: 0 after an orderly end, 1 where it could not start, 2 for unusable settings.
    """
    from sightline_chassis.settings import SettingsError, load_settings

    from sightline_sampler.settings import SamplerSettings

    try:
        settings = load_settings(SamplerSettings, service="sampler", config=config, overrides=list(overrides))
    except SettingsError as error:
        print(f"sightline-sampler: {error}", file=sys.stderr)
        return 2
    # Threads that wait for each other by spinning are many times slower where cores are shared. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from sightline_chassis.service import serve

    from sightline_sampler.service import SamplerService

    return serve(SamplerService(settings), settings)
