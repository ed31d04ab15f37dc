"""Settings of the trainer service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from sightline_chassis.settings import ServiceSettings

from sightline_trainer.connections import Connections


class TrainerSettings(ServiceSettings):
    """Where runs and recipes live."""

    runs: Path = Field(Path("runs"), description="Directory that holds the run directories.")
    recipes: Path = Field(Path("recipes"), description="Directory of the recipes that can be started by name.")
    connections: Connections = Field(Connections(), description="How the scorer and the sampler are reached.")
    page_size: int = Field(50, ge=1, le=1000, description="Runs of a page where the caller names no number.")
    launchers: list[list[str]] = Field(
        [],
        description="Launchers that a recipe may name in dpo.launch. They are commands that run here, and recipes come "
        "from callers: what is not listed is refused.",
    )
    resume: bool = Field(True, description="Go on with unfinished runs when the service starts.")
