"""A client's credentials for a service, from files named in settings."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypedDict

from sightline.channel import Tls, Token


class CredentialFiles(Protocol):
    """Settings of a connection."""

    @property
    def ca_file(self) -> Path | None: ...
    @property
    def certificate_file(self) -> Path | None: ...
    @property
    def key_file(self) -> Path | None: ...
    @property
    def token_file(self) -> Path | None: ...


class ClientCredentials(TypedDict):
    """Arguments of a client."""

    tls: Tls | None
    token: Token | None


def credentials(files: CredentialFiles) -> ClientCredentials:
    """TLS if one of its files is named, and the token."""
    tls = files.ca_file, files.certificate_file, files.key_file
    return {
        "tls": Tls(*tls) if any(tls) else None,
        "token": None if files.token_file is None else Token(file=files.token_file),
    }
