"""Policies from afar: any URL that fsspec knows, of an allowed scheme. Only files of the manifest are fetched."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec
from sightline.errors import DataCorrupted, InvalidInput, NotFound, PreconditionFailed, Unavailable
from sightline.sampler.manifest import ARRIVAL, MANIFEST, ManifestError, manifest_digest, policy_dirname, read_manifest

logger = logging.getLogger(__name__)

_MANIFEST_BYTES = 64 << 20
_CHUNK = 8 << 20


class _Filesystem(Protocol):
    def info(self, path: str) -> dict[str, Any]: ...

    def open(self, path: str, mode: str) -> Any: ...


def scheme_of(uri: str) -> str:
    """The scheme of a URL, "file" for a path.

    Raises:
        InvalidInput: there is something before "://" that is no scheme, or fsspec's chains are used.
    """
    scheme, separator, _ = uri.partition("://")
    if "::" in uri:
        raise InvalidInput("a policy's URL may not chain file systems (::)", reason="BAD_URI")
    if not separator:
        return "file"
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise InvalidInput(f"{uri!r} is no URL", reason="BAD_URI")
    return scheme


def download(uri: str, version: int, *, into: Path, most_bytes: int) -> Path:
    """Bring a policy to disk: its manifest first, then each file that the manifest names, by that name and no other.

    What was fetched before and has the same manifest is kept. Nothing is checked here but names and size: see
    `staging.verified`.

    Args:
        uri: of the policy's directory.
        version: for the name of the local directory.
        into: directory of all downloads.
        most_bytes: largest policy.

    Returns:
        The local directory.

    Raises:
        InvalidInput: fsspec does not know the scheme, or the package for it is not installed.
        NotFound: there is nothing at that URL.
        PreconditionFailed: it is half-written, has no proper manifest, or is too large.
        DataCorrupted: a file that the manifest names is not there.
        Unavailable: the storage fails.
    """
    try:
        files, root = fsspec.core.url_to_fs(uri.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise InvalidInput(f"{uri} cannot be opened: {error}", reason="BAD_URI") from error
    except Exception as error:
        raise Unavailable(f"{uri} cannot be opened: {error}", reason="STORAGE_UNAVAILABLE") from error
    into.mkdir(parents=True, exist_ok=True)
    aside = into / f".{policy_dirname(version)}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        _fetch(files, root, MANIFEST, aside, _MANIFEST_BYTES)
        manifest = read_manifest(aside)
        final = into / f"{policy_dirname(version)}-{manifest_digest(aside)[:12]}"
        if final.exists():
            return final
        left = most_bytes
        for name in manifest.files:
            left -= _fetch(files, root, name, aside, left)
        aside.rename(final)
        return final
    except ManifestError as error:
        raise PreconditionFailed(f"{uri}: {error}", reason=f"POLICY_{error.reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def upload_arrival(directory: Path, uri: str) -> None:
    """Put `arrival.json` beside the manifest where the policy came from.

    Raises:
        Exception: whatever the storage raises.
    """
    files, root = fsspec.core.url_to_fs(uri.rstrip("/"))
    with files.open(f"{root}/{ARRIVAL}", "wb") as out:
        out.write((directory / ARRIVAL).read_bytes())


def _fetch(files: _Filesystem, root: str, name: str, to: Path, most: int) -> int:
    """Copy one file; its size."""
    path, size = f"{root.rstrip('/')}/{name}", 0
    local = to / PurePosixPath(name)
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.open(path, "rb") as source, local.open("wb") as out:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > most:
                    raise PreconditionFailed(
                        f"{name} and what came before is larger than policies.max_download_gib allows",
                        reason="POLICY_TOO_LARGE",
                    )
                out.write(chunk)
    except FileNotFoundError:
        if name == MANIFEST:
            raise NotFound(
                f"there is no {MANIFEST} at {root}: no policy, or one that is half-written",
                reason="POLICY_MISSING_DIRECTORY",
            ) from None
        raise DataCorrupted(
            f"{path} is named by the manifest and is not there", reason="POLICY_MISSING_FILE", metadata={"file": name}
        ) from None
    except (PreconditionFailed, NotFound):
        raise
    except Exception as error:  # every file system has its own kinds
        raise Unavailable(f"{path} cannot be read: {error}", reason="STORAGE_UNAVAILABLE") from error
    return size
