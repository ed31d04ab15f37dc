"""Which versions are loaded, which one answers, and who is using which.

Requests hold a lease on their policy from where sampling begins to their last candidate, so a swap never mixes
versions, and a retired policy is freed only when nobody samples from it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sightline.errors import Cancelled, NotFound, PreconditionFailed
from sightline.sampler.types import AtLeast, Exact, PolicyInfo, PolicySelector

from sightline_sampler.policies.proving import ProbeQuestion


@dataclasses.dataclass(slots=True)
class Entry:
    """A loaded policy.

    Attributes:
        info: what is told about it.
        directory: where its files lie here.
        questions: probes that wait for its activation.
        proven: it may answer: its probes showed that it arrived, or nobody asks for that.
        users: requests that hold it.
        leaving: it takes no new requests.
    """

    info: PolicyInfo
    directory: Path | None = None
    questions: Sequence[ProbeQuestion] = ()
    proven: bool = True
    users: int = 0
    leaving: bool = False


class PolicyLease:
    """A request's hold on a policy; see `engines.base.Lease`. Give it back with `release`. Thread-safe: a request may
    end while its engine is about to begin with it."""

    def __init__(self, loaded: LoadedPolicies, selector: PolicySelector | None) -> None:
        self._loaded, self._selector = loaded, selector
        self._lock = threading.Lock()
        self._version: int | None = None
        self._over = False

    def bind(self) -> int:
        """The version to sample with, decided at the first call.

        Raises:
            Cancelled: it was given back: nobody would give it back again.
            PreconditionFailed: what is asked for is not served.
        """
        with self._lock:
            if self._over:
                raise Cancelled("the request has ended")
            if self._version is None:
                self._version = self._loaded.take(self._selector)
            return self._version

    def release(self) -> None:
        """Let the policy go for good; may be called at any time, once or more."""
        with self._lock:
            version, self._version, self._over = self._version, None, True
        if version is not None:
            self._loaded.give(version)


class LoadedPolicies:
    """All loaded policies. `take` and `give` in any thread, the rest on the event loop.

    Args:
        resident: whether the engine can answer with a version as it stands.
    """

    def __init__(self, resident: Callable[[int], bool]) -> None:
        self._resident = resident
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        self._active = 0
        self._idle = asyncio.Event()
        self._events: asyncio.AbstractEventLoop | None = None

    def start(self, base: PolicyInfo) -> None:
        """Put in the base model, which answers at first. Call it in the event loop."""
        self._events = asyncio.get_running_loop()
        self._entries = {0: Entry(base)}

    def __contains__(self, version: int) -> bool:
        return version in self._entries

    @property
    def active(self) -> int:
        """The version that answers requests that name none."""
        return self._active

    @property
    def base(self) -> PolicyInfo:
        """The base model."""
        return self._entries[0].info

    def versions(self) -> set[int]:
        """All loaded versions."""
        return set(self._entries)

    def infos(self) -> list[PolicyInfo]:
        """Loaded policies, oldest version first."""
        with self._lock:
            return [self._entries[version].info for version in sorted(self._entries)]

    def entry(self, version: int | None) -> Entry:
        """One policy; the active one for None.

        Raises:
            NotFound: no such version is loaded.
        """
        with self._lock:
            entry = self._entries.get(self._active if version is None else version)
            if entry is None:
                raise NotFound(f"policy {version} is not loaded; {self._served()}", reason="POLICY_NOT_FOUND")
            return entry

    def staying(self, version: int) -> Entry:
        """As `entry`, of a policy that does not leave.

        Raises:
            NotFound: no such version is loaded.
            PreconditionFailed: it is being retired.
        """
        entry = self.entry(version)
        if entry.leaving:
            raise PreconditionFailed(f"policy {version} is being retired", reason="POLICY_LEAVES")
        return entry

    def add(self, entry: Entry) -> None:
        """Put in a policy."""
        with self._lock:
            self._entries[entry.info.version] = entry

    def remove(self, version: int) -> Entry:
        """Take out a policy."""
        with self._lock:
            return self._entries.pop(version)

    def note(self, version: int, **changes: object) -> PolicyInfo:
        """Change what is told about a policy."""
        with self._lock:
            entry = self._entries[version]
            entry.info = dataclasses.replace(entry.info, **changes)  # type: ignore[arg-type]
            return entry.info

    def activate(self, version: int) -> tuple[PolicyInfo, int]:
        """Make a version the one that answers; it, and the one before."""
        before = self._active
        self.note(before, state="staged")
        info = self.note(version, state="active")
        self._entries[version].proven = True
        self._active = version
        return info, before

    def close(self, version: int) -> Entry:
        """Let a policy take no new requests."""
        with self._lock:
            entry = self._entries[version]
            entry.leaving = True
            return entry

    def close_idle(self) -> int | None:
        """Close the lowest version that nobody uses, and give it; not the active one, nor the base."""
        with self._lock:
            for version, entry in sorted(self._entries.items()):
                if version not in (0, self._active) and not entry.users and not entry.leaving:
                    entry.leaving = True
                    return version
            return None

    async def until_idle(self, entry: Entry) -> None:
        """Wait until nobody uses a policy that was closed; cancelled, it is open again."""
        try:
            while entry.users:
                self._idle.clear()
                if entry.users:
                    await self._idle.wait()
        except asyncio.CancelledError:
            entry.leaving = False
            raise

    def lease(self, selector: PolicySelector | None) -> PolicyLease:
        """A lease, checked now, bound when sampling begins.

        Raises:
            PreconditionFailed: what is asked for is not served.
        """
        with self._lock:
            self._choose(selector)
        return PolicyLease(self, selector)

    def take(self, selector: PolicySelector | None) -> int:
        """Choose a version and count a user of it.

        Raises:
            PreconditionFailed: what is asked for is not served.
        """
        with self._lock:
            entry = self._choose(selector)
            entry.users += 1
            return entry.info.version

    def give(self, version: int) -> None:
        """Count a user less."""
        with self._lock:
            entry = self._entries.get(version)
            if entry is None:
                return
            entry.users -= 1
            wake = entry.leaving and not entry.users
        if wake and self._events is not None:
            self._events.call_soon_threadsafe(self._idle.set)

    def _choose(self, selector: PolicySelector | None) -> Entry:
        version = selector.version if isinstance(selector, Exact) else self._active
        entry = self._entries.get(version)
        if entry is None or entry.leaving:
            self._refuse(f"policy {version} is not served")
        if not entry.proven:
            self._refuse(f"policy {version} came without probes and was never activated: it may not answer yet")
        if version != self._active and not self._resident(version):
            self._refuse(f"policy {version} is staged, and the engine holds one version at a time: activate it first")
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
