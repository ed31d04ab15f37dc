"""Checks a policy directory before staging: its allowed location, and whether it matches its manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from sightline.errors import DataCorrupted, InvalidInput, NotFound, PermissionDenied, PreconditionFailed, SightlineError
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler.manifest import (
    ManifestError,
    PolicyManifest,
    manifest_digest,
    read_arrival,
    read_manifest,
    verify,
)
from sightline.sampler.types import Arrival

from sightline_sampler.policies.download import download, downloads, scheme_of
from sightline_sampler.policies.pushers import forget
from sightline_sampler.policies.received import PUSHED, pushed_directory
from sightline_sampler.settings import PolicySettings

_ONE_AT_A_TIME = threading.Lock()  # a caller may leave, and come back while its first download continues


def policy_directory(uri: str, version: int, settings: PolicySettings) -> Path:
    """The directory that a request names; a remote one is downloaded. Blocks.

    Args:
        uri: an absolute path, with or without "file://", the uri from a push, or a URL with one of `settings.schemes`.
        version: version for the name of a download.
        settings: where policies may come from.

    Raises:
        InvalidInput: it is neither an absolute path nor a URL that fsspec can open.
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
            f"policies may not be loaded from {scheme}://; allowed are {', '.join(settings.schemes)} "
            f"(policies.schemes)",
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
    """Delete a download; a directory that was named by its path is kept."""
    if directory.parent == downloads(settings):
        shutil.rmtree(directory, ignore_errors=True)
        forget(directory)


def announced(directory: Path, meant: str = "") -> tuple[PolicyManifest, str]:
    """The manifest of a directory and its digest; `verified` checks the files later.

    Args:
        directory: the policy's directory.
        meant: the digest that it must have; "" accepts any.

    Raises:
        NotFound: no such directory.
        PreconditionFailed: it is half-written, has no valid manifest, is another policy, or was trained with another
            rule for reading pictures.
    """
    try:
        manifest = read_manifest(directory)  # raises an error that says what is wrong
        digest = manifest_digest(directory)
        if meant and digest != meant:
            raise PreconditionFailed(
                f"{directory} holds another policy here: its manifest has SHA-256 {digest}, but {meant} was requested",
                reason="POLICY_DIFFERS",
            )
    except ManifestError as error:
        raise _typed(error) from error
    if manifest.picture_rule != PICTURE_RULE:
        trained = f"rule {manifest.picture_rule}" if manifest.picture_rule else "no named rule, as by Sightline 0.1.0"
        raise PreconditionFailed(
            f"policy {manifest.version} in {directory} was trained on pictures read by {trained}, but this sampler "
            f"reads them by rule {PICTURE_RULE}: train it again, or serve it with the release that made it",
            reason="PICTURE_RULE_DIFFERS",
        )
    return manifest, digest


def verified(directory: Path, digest: str) -> None:
    """Check all files of a directory; the time depends on its size.

    Args:
        directory: the policy's directory.
        digest: digest of the manifest that `announced` has read.

    Raises:
        DataCorrupted: a file does not match the manifest, or the manifest has changed.
        PreconditionFailed: a file is missing or left over.
    """
    try:
        verify(directory)
        if manifest_digest(directory) != digest:
            raise DataCorrupted(
                f"the manifest of {directory} changed meanwhile: stage it again when nothing writes there",
                reason="POLICY_CHANGED_FILE",
            )
    except ManifestError as error:
        raise _typed(error) from error


@contextlib.contextmanager
def discarded_if_bad(
    directory: Path, settings: PolicySettings, loaded: Callable[[], Collection[Path]]
) -> Iterator[None]:
    """Delete a wrong download, unless it is loaded."""
    try:
        yield
    except SightlineError:
        if directory not in loaded():
            discard(directory, settings)
        raise


def shown_before(directory: Path, digest: str, engine: str) -> Arrival | None:
    """The earlier result of probes for the same files on the same kind of engine, since a restarted sampler gets a
    policy again without probes."""
    report = read_arrival(directory) or {}
    if report.get("digest") != digest or report.get("passed") is not True or report.get("engine") != engine:
        return None
    try:
        return Arrival(**{field.name: report[field.name] for field in dataclasses.fields(Arrival)})
    except KeyError:  # from another release
        return None


def _typed(error: ManifestError) -> SightlineError:
    classes: dict[str, type[SightlineError]] = {"MISSING_DIRECTORY": NotFound, "CHANGED_FILE": DataCorrupted}
    cls = classes.get(error.reason, PreconditionFailed)
    return cls(str(error), reason=f"POLICY_{error.reason}", metadata={"file": error.file})
