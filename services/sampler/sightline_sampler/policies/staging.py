"""A policy directory as it comes: where it may lie, and whether it is what its manifest says."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from sightline.errors import DataCorrupted, InvalidInput, NotFound, PermissionDenied, PreconditionFailed, SightlineError
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler.manifest import ManifestError, PolicyManifest, manifest_digest, read_manifest, verify

from sightline_sampler.policies.download import download, downloads, scheme_of
from sightline_sampler.policies.received import PUSHED, pushed_directory
from sightline_sampler.settings import PolicySettings

_ONE_AT_A_TIME = threading.Lock()  # a caller may leave, and ask again while its first download goes on


def policy_directory(uri: str, version: int, settings: PolicySettings) -> Path:
    """The directory that a request names; what lies afar is downloaded. Blocks.

    Args:
        uri: an absolute path, with or without "file://", what a push was answered, or a URL of one of
            `settings.schemes`.
        version: for the name of a download.
        settings: where policies may come from.

    Raises:
        InvalidInput: it is no absolute path, and no URL that fsspec can open.
        PermissionDenied: its scheme is not allowed, or it is not under `settings.root`, links followed.
        SightlineError: it cannot be downloaded; see `download`.
    """
    if not uri:
        raise InvalidInput("uri is empty: name the policy's directory", reason="BAD_URI")
    scheme = scheme_of(uri)
    if scheme == PUSHED:
        return pushed_directory(uri, downloads(settings))
    if scheme not in settings.schemes:
        raise PermissionDenied(
            f"policies may not come by {scheme}:// here; allowed are {', '.join(settings.schemes)} (policies.schemes)",
            reason="SCHEME_NOT_ALLOWED",
        )
    if scheme != "file":
        most = int(settings.max_download_gib * (1 << 30))
        with _ONE_AT_A_TIME:
            return download(uri, version, into=downloads(settings), most_bytes=most)
    directory, root = Path(uri.removeprefix("file://")), settings.root
    if "\0" in uri or not directory.is_absolute():
        raise InvalidInput(f"uri must be an absolute path or a URL, not {uri!r}", reason="BAD_URI")
    if root is not None and not directory.resolve().is_relative_to(root.resolve()):
        raise PermissionDenied(f"{uri} is not under {root} (policies.root)", reason="OUTSIDE_ROOT")
    return directory


def discard(directory: Path, settings: PolicySettings) -> None:
    """Delete a download; a directory that was named by its path is left alone."""
    if directory.parent == downloads(settings):
        shutil.rmtree(directory, ignore_errors=True)


def verified(directory: Path, meant: str = "") -> tuple[PolicyManifest, str]:
    """The manifest of a directory whose files were all checked, and the manifest's digest.

    Args:
        directory: of the policy.
        meant: what that digest must be; "" for whichever it is.

    Raises:
        NotFound: no such directory.
        DataCorrupted: a file is not the one of the manifest.
        PreconditionFailed: half-written, a file missing or left over, no proper manifest, another policy than is meant,
            or trained by another rule to read pictures.
    """
    try:
        read_manifest(directory)  # says what is wrong with it
        digest = manifest_digest(directory)
        if meant and digest != meant:
            raise PreconditionFailed(
                f"{directory} holds another policy here: its manifest has SHA-256 {digest}, and {meant} is meant",
                reason="POLICY_DIFFERS",
            )
        manifest = verify(directory)
    except ManifestError as error:
        raise _typed(error) from error
    if manifest.picture_rule != PICTURE_RULE:
        trained = f"rule {manifest.picture_rule}" if manifest.picture_rule else "no named rule, as by Sightline 0.1.0"
        raise PreconditionFailed(
            f"policy {manifest.version} in {directory} was trained on pictures read by {trained}, and this sampler "
            f"reads them by rule {PICTURE_RULE}: train it again, or serve it with the release that made it",
            reason="PICTURE_RULE_DIFFERS",
        )
    return manifest, digest


def _typed(error: ManifestError) -> SightlineError:
    classes: dict[str, type[SightlineError]] = {"MISSING_DIRECTORY": NotFound, "CHANGED_FILE": DataCorrupted}
    cls = classes.get(error.reason, PreconditionFailed)
    return cls(str(error), reason=f"POLICY_{error.reason}", metadata={"file": error.file})
