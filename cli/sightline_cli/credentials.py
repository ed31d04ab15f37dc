"""Credentials that commands send to running services, and how they verify them: options of `sightline` itself.

    sightline --tls-ca ca.pem --token-file token score photo.jpg "a dog" --scorer dns:///scorer:50051

They are used for services whose address was given, never for those that a command starts itself on loopback.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.credentials import Tls, Token

TOKEN = "SIGHTLINE_TOKEN"  # noqa: S105  a variable's name
"""Variable that holds the token: a flag would be visible in the process list."""


@dataclass(frozen=True)
class Credentials:
    """Credentials from the command line or the environment."""

    encrypted: bool = False
    root: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    token_file: Path | None = None

    def tls(self) -> Tls | None:
        """None for plaintext."""
        from sightline.credentials import Tls

        if not (self.encrypted or self.root or self.certificate or self.key or self.server_name):
            return None
        return Tls(self.root, self.certificate, self.key, self.server_name)

    def arguments(self) -> dict[str, Any]:
        """`tls` and `token` of a client."""
        return {"tls": self.tls(), "token": self.token()}

    def of_client(self) -> dict[str, Any]:
        """Arguments of a client for interactive use: an unavailable service is reported within seconds."""
        from sightline.patience import Patience

        return {"patience": Patience(seconds=5), **self.arguments()}

    def token(self) -> Token | None:
        """None if there is none."""
        from sightline.credentials import Token

        if self.token_file is not None:
            return Token(file=self.token_file)
        value = os.environ.get(TOKEN, "").strip()
        return Token(value) if value else None


_given: ContextVar[Credentials] = ContextVar("credentials", default=Credentials())  # noqa: B039  frozen


def give(credentials: Credentials) -> None:
    """Make the command that follows use these."""
    _given.set(credentials)


def given() -> Credentials:
    """The credentials of this command."""
    return _given.get()
