"""A client's credentials: PEM files for TLS, and a bearer token. Light."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sightline.errors import PreconditionFailed


@dataclass(frozen=True)
class Tls:
    """An encrypted channel.

    The files are read when the channel is opened; gRPC cannot reload them: open a new channel after a rotation.

    Args:
        root: PEM certificates of the authorities that signed the server's certificate; None: gRPC's own.
        certificate: the client's own certificate, if the server requires one (`server.tls.mode: mutual`).
        key: its private key.
        server_name: the name that the server's certificate must have, if it differs from the target's.
    """

    root: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a secure channel; raises PreconditionFailed if a file is missing or cannot be read."""
        if (self.certificate is None) != (self.key is None):
            raise PreconditionFailed(
                "Tls has only one of certificate and key: give both or neither", reason="TLS_FILES"
            )
        return grpc.ssl_channel_credentials(_pem(self.root), _pem(self.key), _pem(self.certificate))


@dataclass(frozen=True)
class Token:
    """A bearer token, given directly or in a file.

    Args:
        value: the token.
        file: a file that holds the token, read again for each call, so that a new token needs no new channel.
        allow_plaintext: send it over an unencrypted channel to other hosts too. Anyone who can listen
            there can then call in your name.
    """

    value: str = field(default="", repr=False)
    file: Path | None = None
    allow_plaintext: bool = False

    def read(self) -> str:
        """The current token; raises PreconditionFailed if there is none."""
        if self.file is None:
            text = self.value
        else:
            try:
                text = self.file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeError) as error:
                raise PreconditionFailed(
                    f"the token file {self.file} cannot be read: {error}", reason="TOKEN_FILE"
                ) from None
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            where = f" in {self.file}" if self.file else ""
            raise PreconditionFailed(
                f"the token{where} is empty or has characters that no token can have: give the token alone",
                reason="TOKEN_FILE",
            )
        return text

    def header(self) -> tuple[str, str]:
        """The metadata of a call."""
        return "authorization", f"Bearer {self.read()}"


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise PreconditionFailed(f"{path} cannot be read: {error.strerror}", reason="TLS_FILES") from None
    if b"-----BEGIN" not in pem:
        raise PreconditionFailed(f"{path} contains no PEM certificate or key: name a PEM file", reason="TLS_FILES")
    return pem
