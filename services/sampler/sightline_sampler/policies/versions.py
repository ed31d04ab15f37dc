"""Version numbers: they only grow, and one never stands for other weights than before."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import AlreadyExists, PreconditionFailed
from sightline.sampler.manifest import PolicyManifest

from sightline_sampler.policies.loaded import LoadedPolicies


class Versions:
    """Every version ever staged here; `digests` has its manifest's SHA-256."""

    def __init__(self) -> None:
        self.digests: dict[int, str] = {}

    def highest(self, loaded: LoadedPolicies) -> int:
        """The highest version ever staged here."""
        return max({0, *loaded.versions(), *self.digests})

    def refuse_known(self, version: int, loaded: LoadedPolicies) -> None:
        """Refuse a version that is loaded, and a new one that is not the highest.

        Raises:
            AlreadyExists: it is loaded.
            PreconditionFailed: a higher one was staged before.
        """
        if version in loaded:
            info = loaded.entry(version).info
            raise AlreadyExists(
                f"policy {version} is {info.state} here, from {info.uri}",
                reason="POLICY_EXISTS",
                metadata={"version": str(version), "state": info.state, "digest": info.digest},
            )
        highest = self.highest(loaded)
        if version < highest and version not in self.digests:
            raise PreconditionFailed(
                f"version {version} is not new: versions only grow, and {highest} was staged before",
                reason="VERSION_NOT_NEW",
                metadata={"highest": str(highest)},
            )

    def refuse_foreign(
        self, version: int, manifest: PolicyManifest, digest: str, directory: Path, base_digest: str
    ) -> None:
        """Refuse a manifest that is of another version or base model, or a number with other weights than before.

        Raises:
            PreconditionFailed: it is.
        """
        if manifest.version != version:
            raise PreconditionFailed(
                f"{directory} holds version {manifest.version}, not {version}", reason="VERSION_MISMATCH"
            )
        if manifest.base_digest != base_digest:
            raise PreconditionFailed(
                f"{directory} belongs to the base model {manifest.base_digest}, and this is {base_digest}",
                reason="WRONG_BASE_MODEL",
                metadata={"base_digest": base_digest},
            )
        if self.digests.get(version, digest) != digest:
            raise PreconditionFailed(
                f"version {version} stood for other weights before, and numbers are never used again",
                reason="VERSION_REUSED",
            )
