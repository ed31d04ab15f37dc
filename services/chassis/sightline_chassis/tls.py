"""The service's certificate: read, checked, and read again when its files change, without a restart.

A new certificate (or client CA) is used from the next handshake on; open connections keep theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sightline.errors import PreconditionFailed

from sightline_chassis import metrics
from sightline_chassis.sections import TlsSettings
from sightline_chassis.watched import Watched


@dataclass(frozen=True)
class _Loaded:
    configuration: Any  # grpc.ServerCertificateConfiguration


class Certificates:
    """The files that `server.tls` names; the mode is not "disabled".

    Raises:
        PreconditionFailed: a file cannot be read, is not PEM, or certificate and key do not belong together.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        paths = [path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None]
        self._files = Watched("TLS files", paths, self._load)
        self._lock = threading.Lock()
        self._shown = self._files.get()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for `add_secure_port`; gRPC calls them at each handshake, from its own thread."""
        return grpc.dynamic_ssl_server_credentials(
            self._shown.configuration, self._changed, require_client_authentication=self._settings.mode == "mutual"
        )

    def refresh(self) -> None:
        """Check the files, so that the expiry metric is right even without connections."""
        self._files.get()

    def _changed(self) -> Any:
        with self._lock:
            loaded = self._files.get()
            if loaded is self._shown:
                return None
            self._shown = loaded
            return loaded.configuration

    def _load(self) -> _Loaded:
        settings = self._settings
        assert settings.certificate is not None
        assert settings.key is not None
        chain, key = _bytes(settings.certificate, "certificate"), _bytes(settings.key, "key")
        certificates = _certificates(chain, settings.certificate, "certificate")
        try:
            private = load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise _refused("key", settings.key, f"is not an unencrypted PEM key ({error})") from None
        if private.public_key() != certificates[0].public_key():
            raise _refused(
                "key",
                settings.key,
                f"does not match the first certificate in {settings.certificate}: replace one of them",
            )
        roots = None
        metrics.TLS_EXPIRY.labels("server").set(_expiry(certificates))
        if settings.client_ca is not None:
            roots = _bytes(settings.client_ca, "client_ca")
            metrics.TLS_EXPIRY.labels("client_ca").set(_expiry(_certificates(roots, settings.client_ca, "client_ca")))
        return _Loaded(grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots))


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused(name, path, f"cannot be read: {error.strerror}") from None


def _certificates(pem: bytes, path: Path, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise _refused(name, path, f"contains no PEM certificate ({error})") from None


def _expiry(certificates: Iterable[x509.Certificate]) -> float:
    """When the first certificate expires, in seconds since 1970."""
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)


def _refused(name: str, path: Path, why: str) -> PreconditionFailed:
    return PreconditionFailed(f"server.tls.{name}: {path} {why}", reason="TLS_FILES")
