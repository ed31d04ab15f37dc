"""The book of policies: which versions are loaded, which one answers, who is using which.

Versions only grow and a number never stands for other weights than before: a version that was retired may be staged
again if its manifest is the same. Requests hold a lease on their policy from where sampling begins to their last
candidate, so a swap never mixes versions, and a retired policy is freed only when nobody samples from it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from pathlib import Path
from typing import NoReturn

from sightline_chassis.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    PreconditionFailed,
)

from sightline_sampler.engines.base import Engine
from sightline_sampler.manifest import PolicyManifest
from sightline_sampler.settings import PolicySettings
from sightline_sampler.staging import policy_directory, verified
from sightline_sampler.state import StateFile
from sightline_sampler.types import AtLeast, Exact, PolicyInfo, PolicySelector

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Entry:
    info: PolicyInfo
    users: int = 0
    leaving: bool = False  # no new leases


class PolicyLease:
    """A request's hold on a policy; see `engines.base.Lease`. Give it back with `release`."""

    def __init__(self, book: PolicyBook, selector: PolicySelector | None) -> None:
        self._book, self._selector = book, selector
        self._version: int | None = None

    def bind(self) -> int:
        """The version to sample with, decided at the first call."""
        if self._version is None:
            self._version = self._book.take(self._selector)
        return self._version

    def release(self) -> None:
        """Lets the policy go; may be called at any time, once or more."""
        version, self._version = self._version, None
        if version is not None:
            self._selector = Exact(version)
            self._book.give(version)


class PolicyBook:
    """All loaded policies. Coroutines run on the event loop; `take` and `give` in any thread.

    Args:
        engine: holds the weights.
        settings: how many, from where, remembered where.
    """

    def __init__(self, engine: Engine, settings: PolicySettings) -> None:
        self._engine, self._settings = engine, settings
        self._state = StateFile(settings.state_dir) if settings.state_dir is not None else None
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._digests: dict[int, str] = {}  # of every version ever staged here
        self._active = 0
        self._changes = asyncio.Lock()  # one stage, activate or retire at a time
        self._idle = asyncio.Event()
        self._events: asyncio.AbstractEventLoop | None = None

    async def start(self, base_digest: str, model: str) -> None:
        """Enters the base model, and takes up the policy that was active before a restart.

        Raises:
            SightlineError: that policy cannot be staged any more.
        """
        self._events = asyncio.get_running_loop()
        info = PolicyInfo(0, "base", "active", digest=base_digest, base_digest=base_digest, uri=model)
        self._entries = {0: _Entry(info)}
        remembered = self._state.read(base_digest) if self._state is not None else None
        if remembered is None:
            return
        self._digests |= remembered.digests
        if remembered.active:
            logger.info("taking up policy %d again", remembered.active)
            await self.stage(remembered.uri, remembered.active)
            await self.activate(remembered.active)

    @property
    def active(self) -> int:
        """The version that answers requests that name none."""
        return self._active

    @property
    def base_digest(self) -> str:
        """SHA-256 of the base model's weights."""
        return self._entries[0].info.base_digest

    def lease(self, selector: PolicySelector | None) -> PolicyLease:
        """A lease, checked now, bound when sampling begins.

        Raises:
            PreconditionFailed: what is asked for is not served.
        """
        with self._lock:
            self._choose(selector)
        return PolicyLease(self, selector)

    def take(self, selector: PolicySelector | None) -> int:
        """Chooses a version and counts a user of it."""
        with self._lock:
            entry = self._choose(selector)
            entry.users += 1
            return entry.info.version

    def give(self, version: int) -> None:
        """Counts a user less."""
        with self._lock:
            entry = self._entries.get(version)
            if entry is None:
                return
            entry.users -= 1
            wake = entry.leaving and not entry.users
        if wake and self._events is not None:
            self._events.call_soon_threadsafe(self._idle.set)

    def get(self, version: int | None) -> PolicyInfo:
        """One policy; the active one for None.

        Raises:
            NotFound: no such version is loaded.
        """
        with self._lock:
            entry = self._entries.get(self._active if version is None else version)
            if entry is None:
                raise NotFound(f"policy {version} is not loaded; {self._served()}", reason="POLICY_NOT_FOUND")
            return entry.info

    def all(self) -> list[PolicyInfo]:
        """Loaded policies, oldest version first."""
        with self._lock:
            return [self._entries[version].info for version in sorted(self._entries)]

    async def stage(self, uri: str, version: int) -> PolicyInfo:
        """Checks a policy directory and loads it; frees the oldest idle policy where there would be too many.

        Raises:
            InvalidInput: no version, or no path.
            NotFound: no such directory.
            AlreadyExists: that version is loaded.
            DataCorrupted: a file is not the one of the manifest.
            PreconditionFailed: half-written, for another base model or version, or its tensors do not fit.
            PermissionDenied: outside the directory that may be staged from.
        """
        if version < 1:
            raise InvalidInput("version must be at least 1: 0 is the base model", reason="BAD_VERSION")
        directory = policy_directory(uri, self._settings.root)
        async with self._changes:
            self._refuse_known(version)
            manifest, digest = await asyncio.to_thread(verified, directory)
            self._refuse_foreign(version, manifest, digest, directory)
            await self._make_room(version)
            staged = await self._engine.stage(directory, manifest)
            info = PolicyInfo(
                version=version,
                kind=manifest.kind,
                state="staged",
                digest=digest,
                base_digest=manifest.base_digest,
                parent_version=manifest.parent_version,
                uri=str(directory),
                run_id=manifest.run_id,
                iteration=manifest.iteration,
                tensors=staged.tensors,
            )
            with self._lock:
                self._entries[version] = _Entry(info)
                self._digests[version] = digest
            logger.info(
                "policy staged",
                extra={"policy_version": version, "tensors": staged.tensors, "modules": staged.modules, "uri": uri},
            )
            return info

    async def activate(self, version: int) -> tuple[PolicyInfo, int]:
        """Makes a version the one that answers; candidates under way finish on theirs.

        Returns:
            The policy, and the version that was active before.

        Raises:
            NotFound: that version is not loaded.
        """
        async with self._changes:
            self.get(version)
            self._refuse_leaving(self._entries[version])
            await self._engine.activate(version)
            with self._lock:
                before, self._active = self._active, version
                old, new = self._entries[before], self._entries[version]
                old.info = dataclasses.replace(old.info, state="staged")
                new.info = info = dataclasses.replace(new.info, state="active")
            if self._state is not None:
                await asyncio.to_thread(self._state.write, self.base_digest, info)
            logger.info("policy activated", extra={"policy_version": version, "previous_version": before})
            return info, before

    async def retire(self, version: int) -> PolicyInfo:
        """Takes no new requests for a version, waits for those under way, and frees it.

        Raises:
            NotFound: that version is not loaded.
            PreconditionFailed: it is active, the base model, or leaves already.
        """
        async with self._changes:
            info = self.get(version)
            if version == 0:
                raise PreconditionFailed("version 0 is the base model and cannot be retired", reason="POLICY_IS_BASE")
            if version == self._active:
                raise PreconditionFailed(
                    f"policy {version} is active: activate another one first", reason="POLICY_IS_ACTIVE"
                )
            entry = self._entries[version]
            self._refuse_leaving(entry)
            with self._lock:
                entry.leaving = True
        await self._until_idle(entry)  # not under the lock: others may stage and activate meanwhile
        async with self._changes:
            await self._free(version)
        return dataclasses.replace(info, state="retired")

    def _choose(self, selector: PolicySelector | None) -> _Entry:
        version = selector.version if isinstance(selector, Exact) else self._active
        entry = self._entries.get(version)
        if entry is None or entry.leaving:
            self._refuse(f"policy {version} is not served")
        if isinstance(selector, AtLeast) and version < selector.version:
            self._refuse(f"a policy of at least version {selector.version} is not served")
        return entry

    def _refuse(self, what: str) -> NoReturn:
        loaded = ",".join(str(version) for version in sorted(self._entries))
        raise PreconditionFailed(
            f"{what}; {self._served()}",
            reason="POLICY_NOT_SERVED",
            metadata={"active": str(self._active), "loaded": loaded},
        )

    def _served(self) -> str:
        loaded = ", ".join(str(version) for version in sorted(self._entries))
        return f"active is {self._active}, loaded are {loaded}"

    def _refuse_known(self, version: int) -> None:
        if version in self._entries:
            info = self._entries[version].info
            raise AlreadyExists(
                f"policy {version} is {info.state} here, from {info.uri}",
                reason="POLICY_EXISTS",
                metadata={"version": str(version), "state": info.state, "digest": info.digest},
            )
        highest = max({*self._entries, *self._digests})
        if version < highest and version not in self._digests:
            raise PreconditionFailed(
                f"version {version} is not new: versions only grow, and {highest} was staged before",
                reason="VERSION_NOT_NEW",
                metadata={"highest": str(highest)},
            )

    def _refuse_foreign(self, version: int, manifest: PolicyManifest, digest: str, directory: Path) -> None:
        if manifest.version != version:
            raise PreconditionFailed(
                f"{directory} holds version {manifest.version}, not {version}", reason="VERSION_MISMATCH"
            )
        if manifest.base_digest != self.base_digest:
            raise PreconditionFailed(
                f"{directory} belongs to the base model {manifest.base_digest}, and this is {self.base_digest}",
                reason="WRONG_BASE_MODEL",
                metadata={"base_digest": self.base_digest},
            )
        if self._digests.get(version, digest) != digest:
            raise PreconditionFailed(
                f"version {version} stood for other weights before, and numbers are never used again",
                reason="VERSION_REUSED",
            )

    async def _make_room(self, version: int) -> None:
        while len(self._entries) > self._settings.max_loaded:
            with self._lock:
                idle = [
                    version
                    for version, entry in self._entries.items()
                    if version not in (0, self._active) and not entry.users and not entry.leaving
                ]
            if not idle:
                raise PreconditionFailed(
                    f"{self._settings.max_loaded} policies are loaded and in use: retire one before staging {version}",
                    reason="TOO_MANY_POLICIES",
                )
            logger.info("policy %d makes room for %d", min(idle), version)
            await self._free(min(idle))

    @staticmethod
    def _refuse_leaving(entry: _Entry) -> None:
        if entry.leaving:
            raise PreconditionFailed(f"policy {entry.info.version} is being retired", reason="POLICY_LEAVES")

    async def _until_idle(self, entry: _Entry) -> None:
        try:
            while entry.users:
                self._idle.clear()
                if entry.users:
                    await self._idle.wait()
        except asyncio.CancelledError:
            entry.leaving = False
            raise

    async def _free(self, version: int) -> None:
        with self._lock:
            self._entries[version].leaving = True
        await self._engine.retire(version)
        with self._lock:
            del self._entries[version]
        logger.info("policy retired", extra={"policy_version": version})
