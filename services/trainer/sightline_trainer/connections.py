"""Connections: how the trainer reaches the scorer and the sampler, and its credentials for them.

These are settings of the trainer, never of a recipe: a recipe comes from any caller who may start a run. Certificates
and tokens are sent only to the addresses named here, whatever addresses a recipe names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from sightline.channel import Tls, Token
from sightline_chassis.settings import Section, Target

from sightline_trainer.recipe import Recipe


class ClientTls(Section):
    """PEM files of an encrypted connection."""

    root: Path | None = Field(
        None, description="Certificates of the authorities that sign the service's; null: gRPC's own."
    )
    certificate: Path | None = Field(None, description="The trainer's own certificate, if the service requires one.")
    key: Path | None = Field(None, description="Its private key.")
    server_name: str | None = Field(None, description="Name in the service's certificate, if not the address's.")


class Connection(Section):
    """One service."""

    address: Target = Field(description="gRPC target for recipes that do not name one.")
    tls: ClientTls | None = Field(None, description="Encryption; null is plaintext.")
    token_file: Path | None = Field(None, description="File with the trainer's token; it is read for each call.")
    allow_plaintext_token: bool = Field(False, description="Send the token without TLS, even to other machines.")

    def credentials(self) -> dict[str, Any]:
        """Arguments `tls` and `token` of a client."""
        token = None
        if self.token_file is not None:
            token = Token(file=self.token_file, allow_plaintext=self.allow_plaintext_token)
        return {"tls": Tls(**dict(self.tls)) if self.tls is not None else None, "token": token}


class Connections(Section):
    """The services that the trainer calls."""

    scorer: Connection | None = Field(None, description="The scorer.")
    sampler: Connection | None = Field(None, description="The sampler.")

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe, with addresses filled in where it has none."""
        sampling, reward = recipe.sampling, recipe.reward
        if sampling.address is None and self.sampler is not None:
            sampling = sampling.model_copy(update={"address": self.sampler.address})
        if reward.address is None and self.scorer is not None:
            reward = reward.model_copy(update={"address": self.scorer.address})
        return recipe.model_copy(update={"sampling": sampling, "reward": reward})

    def credentials(self, address: str | None) -> dict[str, Any]:
        """Arguments `tls` and `token` for a client of this address; none if the address is not in the settings."""
        for connection in (self.scorer, self.sampler):
            if connection is not None and connection.address == address:
                return connection.credentials()
        return {}
