"""Version numbers: a run's numbers only grow, and are never reused for other weights."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import AlreadyExists, PreconditionFailed
from sightline.sampler.manifest import PolicyManifest

from sightline_sampler.policies.loaded import LoadedPolicies


class Versions:
    """Every version ever staged here; `digests` has its manifest's SHA-256 by run and version, oldest first."""

    def __init__(self) -> None:
        self.digests: dict[tuple[str, int], str] = {}

    def highest(self, loaded: LoadedPolicies, run_id: str | None) -> int:
        """The highest version of a run ever staged here; None means all runs."""
        known = (version for run, version in self.digests if run_id in (None, run))
        return max(loaded.highest(run_id), max(known, default=0))

    def refuse(
        self, version: int, manifest: PolicyManifest, digest: str, directory: Path, loaded: LoadedPolicies
    ) -> None:
        """Refuse a version that must not be loaded.

        Raises:
            AlreadyExists: that version of the run is loaded.
            PreconditionFailed: the manifest has another version or base model, its number was used for other weights
                before, or a higher version of the run was staged before.
        """
        run_id = manifest.run_id
        if manifest.version != version:
            raise PreconditionFailed(
                f"{directory} holds version {manifest.version}, not {version}", reason="VERSION_MISMATCH"
            )
        if manifest.base_digest != loaded.base.base_digest:
            raise PreconditionFailed(
                f"{directory} belongs to the base model {manifest.base_digest}, and this is {loaded.base.base_digest}",
                reason="WRONG_BASE_MODEL",
                metadata={"base_digest": loaded.base.base_digest},
            )
        if self.digests.get((run_id, version), digest) != digest:
            raise PreconditionFailed(
                f"version {version} of run {run_id!r} had other weights before, and version numbers are never reused",
                reason="VERSION_REUSED",
            )
        if (slot := loaded.slot(run_id, version)) in loaded:
            info = loaded.info(slot)
            raise AlreadyExists(
                f"policy {version} is {info.state} here, from {info.uri}",
                reason="POLICY_EXISTS",
                metadata={"version": str(version), "state": info.state, "digest": info.digest},
            )
        highest = self.highest(loaded, run_id)
        if version < highest and (run_id, version) not in self.digests:
            raise PreconditionFailed(
                f"version {version} is too low: versions of a run only grow, and {highest} was staged before",
                reason="VERSION_NOT_NEW",
                metadata={"highest": str(highest)},
            )
