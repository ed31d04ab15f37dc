"""Entry point of the scorer. The settings are read before torch is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sightline_chassis.settings import SettingsError, load_settings


def main(config: Path | None, overrides: Sequence[str]) -> int:
    """Serve until told to stop.

    Args:
        config: a YAML file of settings, or None.
        overrides: "section.key=value" from the command line.

    Returns:
        The exit code: 0 after an orderly end, 1 where it could not start, 2 for unusable settings.
    """
    from sightline_scorer.settings import ScorerSettings

    try:
        settings = load_settings(ScorerSettings, service="scorer", config=config, overrides=list(overrides))
    except SettingsError as error:
        print(f"sightline-scorer: {error}", file=sys.stderr)
        return 2

    from sightline_chassis.service import serve

    from sightline_scorer.service import ScorerService

    # open_clip tells every step on the root logger, at info; a filter there leaves named loggers alone.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.WARNING)
    return serve(ScorerService(settings), settings)
