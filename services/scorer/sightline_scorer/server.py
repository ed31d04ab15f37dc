"""Entry point of the scorer. The settings are read before torch is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline_chassis.service import Service


def main(config: Path | None, overrides: Sequence[str]) -> int:
    """Serve until a signal; see `sightline_chassis.process.run` for arguments and exit codes."""
    from sightline_chassis.process import run
    from sightline_chassis.settings import load_settings

    from sightline_scorer.settings import ScorerSettings

    def make(settings: ScorerSettings) -> Service:
        from sightline_scorer.service import ScorerService

        # open_clip logs every step on the root logger, at info; a filter there leaves named loggers alone.
        logging.getLogger().addFilter(lambda record: record.levelno >= logging.WARNING)
        return ScorerService(
            settings,
            reread=lambda: load_settings(ScorerSettings, service="scorer", config=config, overrides=overrides),
        )

    return run("scorer", ScorerSettings, make, config=config, overrides=overrides)
