"""Stages, proves, activates and retires policies.

A run's versions only grow, and a number is never reused for other weights, also across restarts if a state directory is
set; two runs may have the same numbers. A retired version may be staged again if its manifest is the same. A policy
with probes answers only after the engine proved its weights (`gate`); if that fails it is freed, and the previous
policy continues to answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline.sampler.manifest import policy_dirname, write_arrival
from sightline.sampler.types import Arrival, PauseMode, PolicyInfo, PolicySelector

from sightline_sampler import metrics
from sightline_sampler.engines.base import Engine
from sightline_sampler.policies.download import scheme_of, upload_arrival
from sightline_sampler.policies.loaded import Entry, LoadedPolicies, PolicyLease
from sightline_sampler.policies.proving import Examiner, ProbeQuestion
from sightline_sampler.policies.received import PUSHED
from sightline_sampler.policies.shares import TeamShares
from sightline_sampler.policies.staging import (
    announced,
    discard,
    discarded_if_bad,
    policy_directory,
    shown_before,
    verified,
)
from sightline_sampler.policies.state import State, StateFile
from sightline_sampler.policies.versions import Versions
from sightline_sampler.settings import PolicySettings
from sightline_sampler.traffic import Traffic

logger = logging.getLogger(__name__)


class PolicyRegistry:
    """All policies of an engine. For the event loop's thread.

    Args:
        engine: holds the weights.
        settings: how many policies, from where, and the state directory.
        traffic: the door that is closed during a swap.
    """

    def __init__(self, engine: Engine, settings: PolicySettings, traffic: Traffic) -> None:
        self._engine, self._settings, self._traffic = engine, settings, traffic
        self._state = StateFile(settings.state_dir) if settings.state_dir is not None else None
        self._loaded = LoadedPolicies(engine.resident)
        self._shares = TeamShares(self._loaded)
        self._examiner = Examiner(engine, settings.gate)
        engine.on_return(self._examiner.compare)
        self._versions = Versions()
        self._changes = asyncio.Lock()  # one stage, activate or retire at a time
        self._frozen = self._released = False
        self._coming = ""  # prefix of the directory of the policy that is being staged

    async def start(self, base_digest: str, model: str) -> None:
        """Add the base model, and restore the policy that was active before a restart.

        Raises:
            SightlineError: that policy can no longer be staged.
        """
        self._loaded.start(PolicyInfo(0, "base", "active", digest=base_digest, base_digest=base_digest, uri=model))
        if self._state is not None:
            await asyncio.to_thread(self._state.hold)
        remembered = self._state.read(base_digest) if self._state is not None else None
        if remembered is None:
            return
        self._versions.digests |= remembered.digests
        if remembered.active:
            logger.info("restoring policy %d", remembered.active)
            try:
                await self._stage(remembered.uri, remembered.active, ())
            except SightlineError as error:
                raise type(error)(
                    f"policy {remembered.active}, which answered before the restart, cannot be restored: "
                    f"{error.message}; or delete sampler.json in policies.state_dir to start from the base model",
                    reason=error.reason,
                    metadata=error.metadata,
                ) from error
            await self._activate(self._loaded.entry(remembered.active), (), proven=True)

    def stop(self) -> None:
        """Release the state for another sampler."""
        if self._state is not None:
            self._state.release()

    @property
    def active(self) -> PolicyInfo:
        """The policy that answers requests that name neither run nor version."""
        return self._loaded.active.info

    def sampled_by(self, slot: int) -> PolicyInfo:
        """The policy with that slot, while a lease on it is held."""
        return self._loaded.info(slot)

    def lease(self, selector: PolicySelector | None) -> PolicyLease:
        """A lease, checked now, bound when sampling begins.

        Raises:
            PreconditionFailed: the requested policy is not served.
        """
        return self._loaded.lease(selector)

    def get(self, version: int | None, run_id: str = "") -> PolicyInfo:
        """One policy; the active one for no version, of all runs for no run.

        Raises:
            NotFound: no such version is loaded.
            PreconditionFailed: several runs have that version, and none is named.
        """
        return self._loaded.entry(version, run_id).info

    def all(self, run_id: str = "") -> list[PolicyInfo]:
        """Loaded policies, the base model first, then by run and version; only one run's if named."""
        return self._loaded.infos(run_id)

    def highest(self, run_id: str = "") -> int:
        """The highest version ever staged here, loaded or not; only one run's if named."""
        return self._versions.highest(self._loaded, run_id or None)

    def keeps(self, directory: Path) -> bool:
        """Whether a policy's directory must be kept: it is loaded, or about to be."""
        return directory in self._directories() or bool(self._coming and directory.name.startswith(self._coming))

    def _directories(self) -> set[Path]:
        return {entry.directory for entry in self._loaded.entries() if entry.directory is not None}

    async def stage(
        self,
        uri: str,
        version: int,
        questions: Sequence[ProbeQuestion] = (),
        digest: str = "",
        *,
        team: str = "",
        most: int | None = None,
    ) -> PolicyInfo:
        """Check a policy directory and load it; free the oldest idle policy if there would be too many.

        Args:
            uri: an absolute path, the uri from a push, or a URL with an allowed scheme.
            version: the version that its manifest must have.
            questions: probes; run at once if the engine can answer beside the active version, else at activation.
            digest: the SHA-256 that its manifest must have; "" accepts any.
            team: the team that stages it.
            most: maximum staged policies of the team; None is unlimited.

        Raises:
            Overloaded: the team has reached its maximum.
            InvalidInput: version or path is missing.
            NotFound: no such directory.
            AlreadyExists: that version is loaded.
            DataCorrupted: a file does not match the manifest.
            PreconditionFailed: it is half-written, for another base model or version, its tensors do not fit, or its
                probes show that it did not arrive.
            PermissionDenied: its location is not allowed.
        """
        if version < 1:
            raise InvalidInput("version must be at least 1: 0 is the base model", reason="BAD_VERSION")
        async with self._changes:
            self._refuse_released()
            self._shares.refuse_more(team, most)
            info = await self._stage(uri, version, questions, digest, team)
        self._shares.show()
        return info

    async def activate(
        self, version: int, questions: Sequence[ProbeQuestion] = (), run_id: str = ""
    ) -> tuple[PolicyInfo, int]:
        """Make a version the active one, for its run and globally; running candidates finish on theirs.

        Args:
            version: a staged version, or 0.
            questions: probes; if empty, those from staging, if they have not run yet.
            run_id: the run that the version belongs to; "" for the only run that has it.

        Returns:
            The policy, and the run's previously active version.

        Raises:
            NotFound: that version is not loaded.
            PreconditionFailed: its probes show that it did not arrive; it is freed, the previous version answers.
        """
        async with self._changes:
            self._refuse_released()
            return await self._activate(self._loaded.staying(version, run_id), questions, run_id)

    async def retire(self, version: int, run_id: str = "") -> PolicyInfo:
        """Stop new requests for a version, wait for its running ones, and free it.

        Raises:
            NotFound: that version is not loaded.
            PreconditionFailed: it is active, the base model, or already being retired.
        """
        async with self._changes:
            entry = self._loaded.entry(version, run_id)
            if version == 0:
                raise PreconditionFailed("version 0 is the base model and cannot be retired", reason="POLICY_IS_BASE")
            if entry is self._loaded.active:
                raise PreconditionFailed(
                    f"policy {version} is active: activate another one first", reason="POLICY_IS_ACTIVE"
                )
            entry = self._loaded.staying(version, run_id)
            info = self._loaded.close(entry.slot).info
        try:
            await self._loaded.until_idle(entry)  # not under the lock: others may stage and activate meanwhile
            async with self._changes:
                await self._free(entry.slot)
        except BaseException:
            entry.leaving = False  # it can be asked for again
            raise
        return dataclasses.replace(info, state="retired")

    async def pause(self, mode: PauseMode, *, release: bool = False) -> int:
        """Stop sampling until `resume`; the number of requests that were running.

        Args:
            release: whether the engine frees its memory, too.

        Raises:
            InvalidInput: the engine cannot do it in that way.
        """
        if release and mode == "keep":
            raise InvalidInput(
                "a pause with keep holds running work in memory: use release with drain or abort",
                reason="PAUSE_MODE_UNSUPPORTED",
            )
        if mode == "keep":
            self._frozen = True  # also where the answer is lost: Resume thaws it
            try:
                await self._engine.freeze()
            except InvalidInput:
                self._frozen = False
                raise
        under_way = self._traffic.close("pause")
        metrics.PAUSED.set(1)
        if mode == "abort":
            self._traffic.abort()
        if mode != "keep":
            await self._traffic.idle()
        if release:
            async with self._changes:  # a policy that is being staged comes first
                if not self._traffic.closed:  # a Resume came meanwhile
                    return under_way
                self._released = True
                try:
                    await self._engine.release()
                except InvalidInput:
                    self._released = False
                    await self.resume()
                    raise
        return under_way

    async def resume(self) -> None:
        """End a pause.

        Raises:
            SightlineError: the engine's weights did not come back; the pause continues.
        """
        if self._released:
            await self._engine.reload()
            self._released = False
        if self._frozen:
            await self._engine.thaw()
            self._frozen = False
        self._traffic.open("pause")
        metrics.PAUSED.set(0)

    async def _stage(
        self, uri: str, version: int, questions: Sequence[ProbeQuestion], meant: str = "", team: str | None = None
    ) -> PolicyInfo:
        self._coming = f"{policy_dirname(version)}-"
        try:
            return await self._staged(uri, version, questions, meant, team)
        finally:
            self._coming = ""

    async def _staged(
        self, uri: str, version: int, questions: Sequence[ProbeQuestion], meant: str, team: str | None
    ) -> PolicyInfo:
        directory = await asyncio.to_thread(policy_directory, uri, version, self._settings)
        with discarded_if_bad(directory, self._settings, self._directories):
            manifest, digest = await asyncio.to_thread(announced, directory, meant)
        self._versions.refuse(version, manifest, digest, directory, self._loaded)  # before its bytes are all read
        with discarded_if_bad(directory, self._settings, self._directories):
            await asyncio.to_thread(verified, directory, digest)
        await self._make_room(version)
        slot = self._loaded.slot(manifest.run_id, version)
        staged = await self._engine.stage(directory, dataclasses.replace(manifest, version=slot, parent_version=0))
        info = PolicyInfo(
            version=version,
            kind=manifest.kind,
            state="staged",
            digest=digest,
            base_digest=manifest.base_digest,
            parent_version=manifest.parent_version,
            uri=str(directory) if scheme_of(uri) == "file" else uri,
            run_id=manifest.run_id,
            iteration=manifest.iteration,
            tensors=staged.tensors,
            changed_modules=staged.modules,
            arrival=await asyncio.to_thread(shown_before, directory, digest, self._engine.capabilities().engine),
        )
        proven = info.arrival is not None or not self._settings.gate.required
        entry = self._loaded.add(Entry(info, directory, questions, proven=proven, team=team))
        self._versions.digests[manifest.run_id, version] = digest
        await self._remember()
        logger.info(
            "policy staged",
            extra={"policy_version": version, "tensors": staged.tensors, "modules": staged.modules, "uri": uri},
        )
        if questions and self._engine.resident(slot):
            await self._prove(entry, questions)
        return entry.info

    async def _activate(
        self, entry: Entry, questions: Sequence[ProbeQuestion], run_id: str = "", *, proven: bool = False
    ) -> tuple[PolicyInfo, int]:
        version, questions = entry.info.version, questions or entry.questions
        if self._settings.gate.required and version and not (proven or questions or entry.info.arrival):
            raise PreconditionFailed(
                f"policy {version} came without probes to prove that it arrived: send some, or set the sampler's "
                "policies.gate.required to false",
                reason="PROBES_REQUIRED",
            )
        arrival = entry.info.arrival
        if arrival is not None and not (arrival.passed or questions or entry is self._loaded.active):
            await self._reject(entry, arrival)  # it should have been freed, but the caller left meanwhile
        if not self._engine.resident(entry.slot):
            await self._swap(entry, questions)
        elif questions:
            await self._prove(entry, questions)
        info, before = self._loaded.activate(entry.slot, run_id)
        await self._remember()
        logger.info(
            "policy activated", extra={"policy_version": version, "run": info.run_id, "previous_version": before}
        )
        return info, before

    async def _prove(self, entry: Entry, questions: Sequence[ProbeQuestion]) -> None:
        """Prove a version that can answer beside the others.

        Raises:
            PreconditionFailed: it did not arrive and was freed, or the version to compare with is not served.
        """
        version, parent = entry.info.version, self._parent(entry)
        self._refuse_frozen()
        if parent not in self._loaded or not self._engine.resident(parent):
            raise PreconditionFailed(
                f"the probes of policy {version} compare it with version {entry.info.parent_version}, which is not "
                "loaded: stage it first",
                reason="PROBE_NEEDS_PREVIOUS",
            )
        before = await self._examiner.ask(questions, parent)
        after = await self._examiner.ask(questions, entry.slot)
        arrival = self._examiner.verdict(questions, before, after, entry.info.parent_version)
        await self._record(entry, arrival)
        if not arrival.passed:
            await self._reject(entry, arrival)

    def _parent(self, entry: Entry) -> int:
        """The slot of the policy that it was trained from."""
        return self._loaded.slot(entry.info.run_id, entry.info.parent_version)

    async def _reject(self, entry: Entry, arrival: Arrival) -> NoReturn:
        if entry is not self._loaded.active:
            await self._loaded.until_idle(self._loaded.close(entry.slot))
            await self._free(entry.slot)
        raise self._did_not_arrive(entry.info.version, arrival)

    async def _swap(self, entry: Entry, questions: Sequence[ProbeQuestion]) -> None:
        """Switch an engine that holds one version at a time, between two requests.

        Raises:
            PreconditionFailed: it did not arrive; the previous version is restored.
        """
        version, active = entry.info.version, self._loaded.active
        self._refuse_frozen()
        if questions and active.slot != self._parent(entry):
            raise PreconditionFailed(
                f"the probes of policy {version} compare it with version {entry.info.parent_version}, and "
                f"{active.info.version} of run {active.info.run_id!r} is active: activate that first",
                reason="PROBE_NEEDS_PREVIOUS",
            )
        before = await self._examiner.ask(questions, active.slot) if questions else None
        self._traffic.close("swap")
        try:
            await self._traffic.idle()
            try:
                await self._engine.activate(entry.slot)
                if before is not None:
                    after = await self._examiner.ask(questions, entry.slot)
                    arrival = self._examiner.verdict(questions, before, after, entry.info.parent_version)
                    await self._record(entry, arrival)
                    if not arrival.passed:
                        raise self._did_not_arrive(version, arrival)
            except BaseException as error:
                logger.warning("rolling policy %d back to %d: %s", version, active.info.version, error)
                await self._roll_back(active, error)
                if isinstance(error, PreconditionFailed) and error.reason == "POLICY_DID_NOT_ARRIVE":
                    await self._free(entry.slot)
                raise
        finally:
            self._traffic.open("swap")

    async def _roll_back(self, active: Entry, why: BaseException) -> None:
        """Restore a version. If that fails too, the caller still gets `why`, extended by this failure."""
        try:
            await self._engine.activate(active.slot)
        except SightlineError as error:
            version = active.info.version
            logger.exception("version %d cannot be restored", version)
            if not isinstance(why, SightlineError):
                raise
            why.message += (
                f"; version {version} cannot be restored, and nothing is sampled until it is: {error.message}"
            )

    async def _record(self, entry: Entry, arrival: Arrival) -> None:
        """Record the probes' result in the registry, the metrics, the log, and beside the manifest."""
        entry.questions, entry.proven = (), entry.proven or arrival.passed
        info = self._loaded.note(entry.slot, arrival=arrival)
        metrics.count_arrival(arrival)
        report = {"policy_version": info.version, "digest": info.digest, **dataclasses.asdict(arrival)}
        logger.info("policy examined", extra=report)
        if entry.directory is None:
            return
        try:
            await asyncio.to_thread(write_arrival, entry.directory, report)
            if scheme_of(info.uri) not in ("file", PUSHED):
                await asyncio.to_thread(upload_arrival, entry.directory, info.uri)
        except Exception as error:  # for example a read-only mount; the registry and the reply have the result
            logger.warning("the arrival report of policy %d cannot be written: %s", info.version, error)

    @staticmethod
    def _did_not_arrive(version: int, arrival: Arrival) -> PreconditionFailed:
        facts = {
            name: f"{value:.6g}"
            for name, value in dataclasses.asdict(arrival).items()
            if isinstance(value, float | int) and not isinstance(value, bool)
        }
        return PreconditionFailed(
            f"policy {version} did not arrive: {arrival.reason}; it was freed, and the previous policy answers",
            reason="POLICY_DID_NOT_ARRIVE",
            metadata=facts,
        )

    def _refuse_frozen(self) -> None:
        if self._frozen:
            raise PreconditionFailed(
                "the engine is paused with keep and cannot answer probes or switch policies: call Resume first",
                reason="PAUSED",
            )

    def _refuse_released(self) -> None:
        if self._released:
            raise PreconditionFailed(
                "the engine is paused and has freed its memory: call Resume first", reason="PAUSED"
            )

    async def _make_room(self, version: int) -> None:
        while len(self._loaded) > self._settings.max_loaded:
            idle = self._loaded.close_idle()
            if idle is None:
                raise PreconditionFailed(
                    f"{self._settings.max_loaded} policies are loaded and in use: retire one before staging {version}",
                    reason="TOO_MANY_POLICIES",
                )
            logger.info("unloading policy %d to make room for %d", self._loaded.info(idle).version, version)
            await self._free(idle)

    async def _free(self, slot: int) -> None:
        entry = self._loaded.close(slot)
        try:
            await self._engine.retire(slot)
        except BaseException:
            entry.leaving = False  # it can be freed later
            raise
        self._loaded.remove(slot)
        self._shares.show()
        if entry.directory is not None:
            await asyncio.to_thread(discard, entry.directory, self._settings)
        logger.info("policy retired", extra={"policy_version": entry.info.version, "run": entry.info.run_id})

    async def _remember(self) -> None:
        if self._state is None:
            return
        active = self.active
        state = State(active.version, active.uri if active.version else "", dict(self._versions.digests))
        await asyncio.to_thread(self._state.write, self._loaded.base.base_digest, state)
