"""Settings of the trainer service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from sightline_chassis.settings import ServiceSettings

from sightline_trainer.allowed import Allowed
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
    addresses: list[str] = Field(
        [],
        description="Services that a recipe may name (gRPC targets, URLs), beside those of `connections`. They are "
        "sent prompts and images: what is not listed is refused.",
    )
    data_roots: list[Path] = Field(
        [],
        description="Directories that a recipe's datasets and their images may lie in, links followed; a dataset of a "
        "hub needs none. What lies elsewhere is refused.",
    )
    parts: list[str] = Field(
        [],
        description="Parts that are not ours and that a recipe may name: package.module:Name, package.module:* or the "
        "name of an entry point. Naming one imports its code here: what is not listed is refused, and never imported.",
    )
    resume: bool = Field(True, description="Go on with unfinished runs when the service starts.")

    def allowed(self) -> Allowed:
        """What a caller's recipe may name."""
        return Allowed(self.launchers, self.addresses, self.data_roots, self.parts)
