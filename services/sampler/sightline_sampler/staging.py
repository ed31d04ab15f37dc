"""A policy directory as it comes: where it may lie, and whether it is what its manifest says."""

from __future__ import annotations

from pathlib import Path

from sightline_chassis.errors import (
    DataCorrupted,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    SightlineError,
)

from sightline_sampler.manifest import ManifestError, PolicyManifest, manifest_digest, verify


def policy_directory(uri: str, root: Path | None) -> Path:
    """The directory that a request names.

    Args:
        uri: an absolute path, with or without "file://".
        root: only directories under this one are allowed; None allows all.

    Raises:
        InvalidInput: it is no absolute path.
        PermissionDenied: it is not under `root`, links followed.
    """
    if not uri:
        raise InvalidInput("uri is empty: name the policy's directory", reason="BAD_URI")
    scheme, separator, rest = uri.partition("://")
    if separator and scheme != "file":
        raise InvalidInput(f"{scheme}:// is not supported: name a directory", reason="BAD_URI")
    directory = Path(rest if separator else uri)
    if "\0" in uri or not directory.is_absolute():
        raise InvalidInput(f"uri must be an absolute path, not {uri!r}", reason="BAD_URI")
    if root is not None and not directory.resolve().is_relative_to(root.resolve()):
        raise PermissionDenied(f"{uri} is not under {root} (policies.root)", reason="OUTSIDE_ROOT")
    return directory


def verified(directory: Path) -> tuple[PolicyManifest, str]:
    """The manifest of a directory whose files were all checked, and the manifest's digest.

    Raises:
        NotFound: no such directory.
        DataCorrupted: a file is not the one of the manifest.
        PreconditionFailed: half-written, a file missing or left over, or no proper manifest.
    """
    try:
        return verify(directory), manifest_digest(directory)
    except ManifestError as error:
        raise _typed(error) from error


def _typed(error: ManifestError) -> SightlineError:
    classes: dict[str, type[SightlineError]] = {"MISSING_DIRECTORY": NotFound, "CHANGED_FILE": DataCorrupted}
    cls = classes.get(error.reason, PreconditionFailed)
    return cls(str(error), reason=f"POLICY_{error.reason}", metadata={"file": error.file})
