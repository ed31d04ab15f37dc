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
    connections: Connections = Field(Connections(), description="Addresses of scorer and sampler.")
    page_size: int = Field(50, ge=1, le=1000, description="Runs per page if the caller sets no number.")
    launchers: list[list[str]] = Field(
        [],
        description=(
            "Launchers that a recipe may name in dpo.launch. They run as commands on this machine, "
            "and recipes come from callers; others are refused."
        ),
    )
    addresses: list[str] = Field(
        [],
        description=(
            "Services that a recipe may name (gRPC targets, URLs), beside those in `connections`. "
            "They receive prompts and images; others are refused."
        ),
    )
    data_roots: list[Path] = Field(
        [],
        description=(
            "Directories that may contain a recipe's datasets and images (links are followed); hub "
            "datasets need none. Others are refused."
        ),
    )
    parts: list[str] = Field(
        [],
        description=(
            "Third-party parts that a recipe may name: package.module:Name, package.module:* or the "
            "name of an entry point. Naming a part imports its code; others are refused and never "
            "imported."
        ),
    )
    resume: bool = Field(True, description="Resume unfinished runs when the service starts.")

    def allowed(self) -> Allowed:
        """The names that a caller's recipe may use."""
        return Allowed(self.launchers, self.addresses, self.data_roots, self.parts)
