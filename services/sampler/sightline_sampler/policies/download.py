"""Downloads policies from any URL that fsspec knows, with an allowed scheme. Only files of the manifest are fetched."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from sightline.errors import DataCorrupted, InvalidInput, NotFound, PreconditionFailed, SightlineError
from sightline.sampler.manifest import ARRIVAL, MANIFEST, ManifestError, manifest_digest, policy_dirname, read_manifest
from sightline_chassis.remote_directory import RemoteDirectory

from sightline_sampler.settings import PolicySettings

logger = logging.getLogger(__name__)

_MANIFEST_BYTES = 64 << 20


def scheme_of(uri: str) -> str:
    """The scheme of a URL, "file" for a path.

    Raises:
        InvalidInput: the part before "://" is not a scheme, or fsspec's chains are used.
    """
    scheme, separator, _ = uri.partition("://")
    if "::" in uri:
        raise InvalidInput("a policy's URL may not chain file systems (::)", reason="BAD_URI")
    if not separator:
        return "file"
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise InvalidInput(f"{uri!r} is not a URL: give a path, or a URL such as s3://bucket/policy", reason="BAD_URI")
    return scheme


def download(uri: str, version: int, *, into: Path, most_bytes: int) -> Path:
    """Bring a policy to disk: its manifest first, then each file that the manifest names, by that name and no other.

    What was fetched before and has the same manifest is kept. Nothing is checked here but names and size: see
    `staging.verified`.

    Args:
        uri: of the policy's directory.
        version: version for the name of the local directory.
        into: directory of all downloads.
        most_bytes: maximum bytes of a policy.

    Returns:
        The local directory.

    Raises:
        InvalidInput: fsspec does not know the scheme, or the package for it is not installed.
        NotFound: there is nothing at that URL.
        PreconditionFailed: it is half-written, has no valid manifest, or is too large.
        DataCorrupted: a file that the manifest names is missing.
        Unavailable: the storage fails.
    """
    remote = RemoteDirectory(uri)
    into.mkdir(parents=True, exist_ok=True)
    aside = into / f".{policy_dirname(version)}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        _fetch(remote, MANIFEST, aside, _MANIFEST_BYTES)
        manifest = read_manifest(aside)
        final = into / f"{policy_dirname(version)}-{manifest_digest(aside)[:12]}"
        if final.exists():
            return final
        left = most_bytes
        for name in manifest.files:
            left -= _fetch(remote, name, aside, left)
        with contextlib.suppress(SightlineError):  # the result of probes elsewhere, if any
            _fetch(remote, ARRIVAL, aside, _MANIFEST_BYTES)
        aside.rename(final)
        return final
    except ManifestError as error:
        raise PreconditionFailed(f"{uri}: {error}", reason=f"POLICY_{error.reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def downloads(settings: PolicySettings) -> Path:
    """The directory for downloaded policies."""
    if settings.download_dir is not None:
        return settings.download_dir
    if settings.state_dir is not None:
        return settings.state_dir / "downloads"
    return Path(tempfile.gettempdir()) / f"sightline-sampler-{os.getpid()}"


def upload_arrival(directory: Path, uri: str) -> None:
    """Write `arrival.json` beside the manifest at the policy's source.

    Raises:
        SightlineError: the storage fails.
    """
    RemoteDirectory(uri).put(ARRIVAL, (directory / ARRIVAL).read_bytes())


def _fetch(remote: RemoteDirectory, name: str, to: Path, most: int) -> int:
    """Fetch one file of a policy; returns its bytes. Errors are phrased for policies."""
    try:
        return remote.fetch(name, to / PurePosixPath(name), most_bytes=most)
    except PreconditionFailed as error:
        raise PreconditionFailed(
            f"{error}: a larger policy needs a larger policies.max_download_gib", reason="POLICY_TOO_LARGE"
        ) from error
    except NotFound as error:
        if name == MANIFEST:
            raise NotFound(f"{error}: not a policy, or an incomplete one", reason="POLICY_MISSING_DIRECTORY") from error
        raise DataCorrupted(
            f"{error}, which the manifest names", reason="POLICY_MISSING_FILE", metadata={"file": name}
        ) from error
