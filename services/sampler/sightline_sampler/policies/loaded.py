"""Which policies are loaded, which ones answer, and which requests use them.

A policy is named by its run and its version, since two runs may have the same version. The engine knows it by one
number, its slot, which is its version unless another run took that number first. A slot is never reused within the
process.

Requests hold a lease on their policy from the start of sampling to their last candidate, so a swap never mixes
versions, and a retired policy is freed only when no request samples from it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
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
        info: its description for callers.
        directory: the local directory of its files.
        questions: probes for its activation.
        proven: whether it may answer: its probes showed that it arrived, or no proof is required.
        users: number of requests that hold it.
        leaving: whether it takes no new requests.
        slot: the engine's number for it; set by `LoadedPolicies.add`.
        used: a counter over all policies' uses, at this one's last use.
        team: the team that staged it; None for the base model and for a policy restored after a restart.
    """

    info: PolicyInfo
    directory: Path | None = None
    questions: Sequence[ProbeQuestion] = ()
    proven: bool = True
    users: int = 0
    leaving: bool = False
    slot: int = 0
    used: int = 0
    team: str | None = None


class PolicyLease:
    """A request's lease on a policy; see `engines.base.Lease`. Return it with `release`. Thread-safe: a request may end
    while its engine is about to start it."""

    def __init__(self, loaded: LoadedPolicies, selector: PolicySelector | None) -> None:
        self._loaded, self._selector = loaded, selector
        self._lock = threading.Lock()
        self._slot: int | None = None
        self._over = False

    def bind(self) -> int:
        """The slot to sample with, decided at the first call.

        Raises:
            Cancelled: it was released, and no caller would release it again.
            PreconditionFailed: the requested policy is not served.
        """
        with self._lock:
            if self._over:
                raise Cancelled("the request has ended")
            if self._slot is None:
                self._slot = self._loaded.take(self._selector)
            return self._slot

    def release(self) -> None:
        """Release the policy; may be called at any time, also repeatedly."""
        with self._lock:
            slot, self._slot, self._over = self._slot, None, True
        if slot is not None:
            self._loaded.give(slot)


class LoadedPolicies:
    """All loaded policies. Call `take` and `give` from any thread, the rest on the event loop.

    Args:
        resident: whether the engine can answer with a slot now.
    """

    def __init__(self, resident: Callable[[int], bool]) -> None:
        self._resident = resident
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        self._slots: dict[tuple[str, int], int] = {("", 0): 0}  # slots of all policies that were ever loaded
        self._active = 0
        self._active_of: dict[str, int] = {}
        self._clock = itertools.count(1)
        self._idle = asyncio.Event()
        self._events: asyncio.AbstractEventLoop | None = None

    def start(self, base: PolicyInfo) -> None:
        """Add the base model, which answers at first. Call it in the event loop."""
        self._events = asyncio.get_running_loop()
        self._entries = {0: Entry(base)}

    def __contains__(self, slot: int) -> bool:
        return slot in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def active(self) -> Entry:
        """The policy that answers requests that name neither run nor version."""
        return self._entries[self._active]

    @property
    def base(self) -> PolicyInfo:
        """The base model."""
        return self._entries[0].info

    def slot(self, run_id: str, version: int) -> int:
        """The slot of a policy that is loaded or about to be: the same at every call. Version 0 is the base model's."""
        if version == 0:
            return 0
        with self._lock:
            known = self._slots.get((run_id, version))
            if known is None:
                taken = set(self._slots.values())
                known = version if version not in taken else max(taken) + 1
                self._slots[run_id, version] = known
            return known

    def slots(self) -> set[int]:
        """Slots of all loaded policies."""
        return set(self._entries)

    def highest(self, run_id: str | None) -> int:
        """The highest loaded version of a run; None means all runs."""
        return max((info.version for info in self._all() if run_id in (None, info.run_id)), default=0)

    def entries(self) -> list[Entry]:
        """All loaded policies."""
        with self._lock:
            return list(self._entries.values())

    def infos(self, run_id: str = "") -> list[PolicyInfo]:
        """Loaded policies, the base model first, then by run and version; only one run's if named."""
        with self._lock:
            return [info for info in self._all() if not run_id or info.run_id in ("", run_id)]

    def info(self, slot: int) -> PolicyInfo:
        """A loaded policy's description for callers."""
        with self._lock:
            return self._entries[slot].info

    def entry(self, version: int | None, run_id: str = "") -> Entry:
        """One policy; the active one for no version, of all runs for no run.

        Raises:
            NotFound: no such version is loaded.
            PreconditionFailed: several runs have that version.
        """
        with self._lock:
            slot = self._find(version, run_id)
            if slot is None:
                raise NotFound(
                    f"policy {_named(version, run_id)} is not loaded; {self._served()}", reason="POLICY_NOT_FOUND"
                )
            return self._entries[slot]

    def staying(self, version: int, run_id: str = "") -> Entry:
        """As `entry`, for a policy that is not being retired.

        Raises:
            NotFound: no such version is loaded.
            PreconditionFailed: it is being retired, or several runs have that version.
        """
        entry = self.entry(version, run_id)
        if entry.leaving:
            raise PreconditionFailed(f"policy {version} is being retired: use another one", reason="POLICY_LEAVES")
        return entry

    def add(self, entry: Entry) -> Entry:
        """Add a policy."""
        entry.slot = self.slot(entry.info.run_id, entry.info.version)
        entry.used = next(self._clock)
        with self._lock:
            self._entries[entry.slot] = entry
        return entry

    def remove(self, slot: int) -> Entry:
        """Remove a policy."""
        with self._lock:
            entry = self._entries.pop(slot)
            if self._active_of.get(entry.info.run_id) == slot:
                del self._active_of[entry.info.run_id]
            return entry

    def note(self, slot: int, **changes: object) -> PolicyInfo:
        """Change a policy's description for callers."""
        with self._lock:
            entry = self._entries[slot]
            entry.info = dataclasses.replace(entry.info, **changes)  # type: ignore[arg-type]
            return entry.info

    def activate(self, slot: int, run_id: str = "") -> tuple[PolicyInfo, int]:
        """Make a policy the active one, for its run and for requests without a run; returns it and the previous
        version.

        Args:
            slot: the policy's slot.
            run_id: the run that returns to the base model, if the slot is the base model's.
        """
        entry = self._entries[slot]
        run = entry.info.run_id or run_id
        before = self._entries.get(self._active_of.get(run, 0) if run else self._active)
        entry.proven = True  # first, since a request for the active one may arrive meanwhile
        self._active = slot
        if run:
            self._active_of[run] = slot
        active = {self._active, *self._active_of.values()}
        for each in self._entries:
            self.note(each, state="active" if each in active else "staged")
        return entry.info, before.info.version if before is not None else 0

    def close(self, slot: int) -> Entry:
        """Stop a policy from taking new requests."""
        with self._lock:
            entry = self._entries[slot]
            entry.leaving = True
            return entry

    def close_idle(self) -> int | None:
        """Close an unused policy, and return its slot: the least recently used of those that are active in no run,
        otherwise of the runs' active ones. Never the globally active one or the base model."""
        with self._lock:
            idle = [
                (slot in self._active_of.values(), entry.used, slot)
                for slot, entry in self._entries.items()
                if slot not in (0, self._active) and not entry.users and not entry.leaving
            ]
            if not idle:
                return None
            slot = min(idle)[-1]
            self._entries[slot].leaving = True
            return slot

    async def until_idle(self, entry: Entry) -> None:
        """Wait until no request uses a closed policy; if cancelled, reopen it."""
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
            PreconditionFailed: the requested policy is not served.
        """
        with self._lock:
            self._choose(selector)
        return PolicyLease(self, selector)

    def take(self, selector: PolicySelector | None) -> int:
        """Choose a policy and count one user more; returns its slot.

        Raises:
            PreconditionFailed: the requested policy is not served.
        """
        with self._lock:
            entry = self._choose(selector)
            entry.users += 1
            entry.used = next(self._clock)
            return entry.slot

    def give(self, slot: int) -> None:
        """Count one user less."""
        with self._lock:
            entry = self._entries.get(slot)
            if entry is None:
                return
            entry.users -= 1
            wake = entry.leaving and not entry.users
        if wake and self._events is not None:
            self._events.call_soon_threadsafe(self._idle.set)

    def _find(self, version: int | None, run_id: str) -> int | None:
        """The slot of a loaded policy.

        Raises:
            PreconditionFailed: several runs have that version, and none is named.
        """
        if version is None:
            slot = self._active_of.get(run_id) if run_id else self._active
        elif version == 0 or run_id:
            slot = self._slots.get((run_id if version else "", version))
        else:
            found = {slot: entry.info.run_id for slot, entry in self._entries.items() if entry.info.version == version}
            if len(found) > 1:
                runs = ", ".join(sorted(found.values()))
                raise PreconditionFailed(
                    f"runs {runs} each have a policy {version} here: name the run (run_id)",
                    reason="POLICY_AMBIGUOUS",
                )
            slot = next(iter(found), None)
        return slot if slot in self._entries else None

    def _choose(self, selector: PolicySelector | None) -> Entry:
        run_id = selector.run_id if selector is not None else ""
        version = selector.version if isinstance(selector, Exact) else None
        slot = self._find(version, run_id)
        if slot is None and version is None:
            self._refuse(f"no policy of run {run_id} is active")
        entry = None if slot is None else self._entries[slot]
        if entry is None or entry.leaving:
            self._refuse(f"policy {_named(version, run_id)} is not served")
        shown = entry.info.version
        if not entry.proven:
            self._refuse(f"policy {shown} came without probes and was never activated: it may not answer yet")
        if entry.slot != self._active and not self._resident(entry.slot):
            self._refuse(f"policy {shown} is staged, and the engine holds one version at a time: activate it first")
        if isinstance(selector, AtLeast) and shown < selector.version:
            self._refuse(f"a policy of at least version {selector.version} is not served")
        return entry

    def _refuse(self, what: str) -> NoReturn:
        loaded = ",".join(str(info.version) for info in sorted(self._all(), key=lambda info: info.version))
        raise PreconditionFailed(
            f"{what}; {self._served()}",
            reason="POLICY_NOT_SERVED",
            metadata={"active": str(self._entries[self._active].info.version), "loaded": loaded},
        )

    def _served(self) -> str:
        active = self._entries[self._active].info
        several = len({info.run_id for info in self._all() if info.run_id}) > 1
        shown = [_named(info.version, info.run_id if several else "") for info in self._all()]
        return f"active is {_named(active.version, active.run_id if several else '')}, loaded are {', '.join(shown)}"

    def _all(self) -> list[PolicyInfo]:
        infos = (entry.info for entry in self._entries.values())
        return sorted(infos, key=lambda info: (info.version > 0, info.run_id, info.version))


def _named(version: int | None, run_id: str) -> str:
    return f"{version} of run {run_id}" if run_id and version else str(version)
