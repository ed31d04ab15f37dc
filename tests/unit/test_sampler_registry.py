"""The registry of policies when callers leave in the middle, with an engine that waits for the test."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from sightline.errors import Cancelled, NotFound, PreconditionFailed, SightlineError
from sightline.sampler.manifest import PolicyManifest, write_manifest
from sightline.sampler.types import Arrival, Exact, PolicyInfo
from sightline_sampler import metrics
from sightline_sampler.engines.base import StagedWeights
from sightline_sampler.policies import state
from sightline_sampler.policies.loaded import Entry, LoadedPolicies
from sightline_sampler.policies.registry import PolicyRegistry
from sightline_sampler.policies.state import State, StateFile
from sightline_sampler.settings import PolicySettings
from sightline_sampler.traffic import Traffic


def info(version: int, arrival: Arrival | None = None) -> PolicyInfo:
    kind, stands = ("base", "active") if version == 0 else ("lora", "staged")
    return PolicyInfo(version, kind, stands, digest="d", base_digest="b", uri="u", arrival=arrival)  # type: ignore[arg-type]


class Engine:
    """Works when the test lets it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.retired: list[int] = []
        self.thawed = False
        self.refusal: SightlineError | None = None

    def resident(self, version: int) -> bool:
        return True

    def on_return(self, proof: Any) -> None:
        """It has no parts."""

    async def retire(self, version: int) -> None:
        self.retired.append(version)
        await self.go.wait()
        if self.refusal is not None:
            raise self.refusal

    async def freeze(self) -> None:
        await self.go.wait()

    async def thaw(self) -> None:
        self.thawed = True


def registry(engine: Any, *versions: int, **settings: Any) -> PolicyRegistry:
    made = PolicyRegistry(engine, PolicySettings.model_validate({"gate": {"required": False}} | settings), Traffic(1))
    made._loaded.start(info(0))
    for version in versions:
        made._loaded.add(Entry(info(version)))
    return made


async def broken_off(task: asyncio.Task[Any]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_request_that_has_ended_takes_no_policy_any_more() -> None:
    """The decoding thread may reach it only now, and nobody would release the policy again."""

    async def run() -> None:
        loaded = LoadedPolicies(lambda version: True)
        loaded.start(info(0))
        lease = loaded.lease(None)
        assert lease.bind() == 0
        lease.release()
        with pytest.raises(Cancelled):
            lease.bind()
        assert loaded.entry(0).users == 0

    asyncio.run(run())


@pytest.mark.parametrize("where", ["lock", "engine"])
def test_a_retirement_whose_caller_leaves_can_be_asked_for_again(where: str) -> None:
    async def run() -> None:
        engine = Engine()
        policies = registry(engine, 1)
        lease = policies.lease(Exact(1))
        if where == "lock":
            lease.bind()
        first = asyncio.create_task(policies.retire(1))
        if where == "lock":
            await asyncio.sleep(0)
            async with policies._changes:  # somebody stages for long
                lease.release()
                await broken_off(first)
        else:
            await broken_off(first)
        engine.go.set()
        assert (await policies.retire(1)).state == "retired"
        assert policies._loaded.slots() == {0}

    asyncio.run(run())


def test_a_policy_that_the_engine_does_not_free_can_be_freed_later() -> None:
    async def run() -> None:
        engine = Engine()
        engine.go.set()
        engine.refusal = PreconditionFailed("not now")
        policies = registry(engine, 1)
        with pytest.raises(PreconditionFailed, match="not now"):
            await policies.retire(1)
        engine.refusal = None
        await policies.retire(1)
        assert policies._loaded.slots() == {0}

    asyncio.run(run())


def test_a_policy_that_is_taken_meanwhile_does_not_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request in the decoding thread asks for the version that is about to be removed."""

    async def run() -> None:
        engine = Engine()
        engine.go.set()
        policies = registry(engine, 1, 2, 3, max_loaded=2)
        taken: list[int] = []

        def take(*_: Any, **__: Any) -> None:
            for version in policies._loaded.slots():
                with contextlib.suppress(PreconditionFailed):
                    taken.append(policies._loaded.take(Exact(version)))

        monkeypatch.setattr(logging.getLogger("sightline_sampler.policies.registry"), "info", take)
        with pytest.raises(PreconditionFailed, match="in use"):
            await policies._make_room(4)
        assert engine.retired == [1]
        assert 1 not in taken
        assert {2, 3} <= set(taken)

    asyncio.run(run())


def test_a_pause_whose_caller_leaves_is_ended_by_resume() -> None:
    async def run() -> None:
        engine = Engine()
        policies = registry(engine)
        await broken_off(asyncio.create_task(policies.pause("keep")))
        await policies.resume()
        assert engine.thawed

    asyncio.run(run())


def test_a_pause_whose_caller_leaves_while_it_drains_shows() -> None:
    async def run() -> None:
        policies = registry(Engine())
        async with policies._traffic.passage():
            await broken_off(asyncio.create_task(policies.pause("drain")))
            assert policies._traffic.closed
            assert metrics.PAUSED._value.get() == 1
        await policies.resume()
        assert metrics.PAUSED._value.get() == 0

    asyncio.run(run())


def test_a_policy_that_did_not_arrive_is_never_activated_without_probes() -> None:
    """Its caller left while the policy was being freed."""

    async def run() -> None:
        engine = Engine()
        engine.go.set()
        policies = registry(engine, 1)
        failed = Arrival(
            passed=False,
            reason="old weights",
            previous_version=0,
            probes=1,
            tokens=1,
            changed=0.0,
            correlation=None,
            required_correlation=0.0,
            gap=1.0,
            previous_gap=None,
            moved=0.0,
            trainer_moved=None,
            sampled_gap=None,
            engine="e",
        )
        policies._loaded.note(1, arrival=failed)
        with pytest.raises(PreconditionFailed, match="old weights"):
            await policies.activate(1)
        assert policies.active.version == 0
        assert policies._loaded.slots() == {0}

    asyncio.run(run())


def test_a_second_sampler_never_uses_the_same_state(tmp_path: Path) -> None:
    """As in a rollout that starts the new pod before the old one has ended."""
    first, second = StateFile(tmp_path), StateFile(tmp_path)
    first.hold()
    with pytest.raises(PreconditionFailed, match="another sampler uses"):
        second.hold()
    first.release()
    second.hold()


def test_state_of_the_first_release_is_read(tmp_path: Path) -> None:
    """It did not record the run of its versions, so they block no later ones."""
    tree = {"base_digest": "b", "active": 3, "uri": "/policies/v000003", "digests": {"3": "d"}}
    (tmp_path / "sampler.json").write_text(json.dumps(tree))
    assert StateFile(tmp_path).read("b") == State(3, "/policies/v000003", {})


def test_what_no_run_has_active_makes_room_first_and_then_what_was_used_longest_ago() -> None:
    async def run() -> None:
        engine = Engine()
        engine.go.set()
        policies = registry(engine, max_loaded=4)
        for run_id, version in (("red", 1), ("red", 2), ("blue", 1)):
            policies._loaded.add(Entry(dataclasses.replace(info(version), run_id=run_id)))
        await policies.activate(1, run_id="red")
        await policies.activate(2, run_id="red")
        await policies.activate(1, run_id="blue")
        slots = {
            (each.run_id, each.version): policies._loaded.slot(each.run_id, each.version) for each in policies.all()
        }
        assert slots == {("", 0): 0, ("red", 1): 1, ("red", 2): 2, ("blue", 1): 3}
        assert policies._loaded.close_idle() == 1, "red's old one"
        assert policies._loaded.close_idle() == 2, "red's active one; blue's answers for all"
        assert policies._loaded.close_idle() is None

    asyncio.run(run())


def test_two_writers_of_the_state_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that left while the disk was slow may leave one writer behind."""
    file, began, go = StateFile(tmp_path), threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(handle: int) -> None:
        if not began.is_set():
            began.set()
            go.wait(10)
        fsync(handle)

    monkeypatch.setattr(state.os, "fsync", slow)
    errors: list[BaseException] = []

    def write(version: int) -> None:
        try:
            file.write("b", State(version, "u", {("run", version): "d"}))
        except BaseException as error:
            errors.append(error)

    first, second = (threading.Thread(target=write, args=(version,)) for version in (1, 2))
    first.start()
    began.wait(10)
    second.start()
    second.join(0.2)
    go.set()
    first.join()
    second.join()
    assert errors == []
    assert file.read("b") == State(2, "u", {("run", 2): "d"})


@pytest.mark.parametrize("failing", [{2}, {2, 0}])
def test_a_swap_that_fails_tells_its_own_reason_also_where_the_way_back_fails(failing: set[int]) -> None:
    asked: list[int] = []

    class Restarting(Engine):
        def resident(self, version: int) -> bool:
            return False

        async def activate(self, version: int) -> None:
            asked.append(version)
            if version in failing:
                raise PreconditionFailed(f"it did not come up with {version}", reason="ENGINE_DID_NOT_CHANGE")

    async def run() -> None:
        made = registry(Restarting(), 2)
        with pytest.raises(PreconditionFailed) as caught:
            await made.activate(2)
        assert asked == [2, 0]
        assert caught.value.message.startswith("it did not come up with 2")
        assert ("version 0 cannot be restored" in caught.value.message) == (0 in failing)
        assert made.active.version == 0

    asyncio.run(run())


def test_a_policy_that_is_being_staged_stays_where_it_lies(tmp_path: Path) -> None:
    """A push that makes room meanwhile must not remove its directory."""

    class Slow(Engine):
        async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
            await self.go.wait()
            return StagedWeights(1, 1)

        def capabilities(self) -> Any:
            return dataclasses.make_dataclass("Able", ["engine"])("none")

    async def run() -> None:
        engine = Slow()
        policies = registry(engine, root=tmp_path)
        policies._loaded.start(dataclasses.replace(info(0), base_digest="b" * 64))
        (tmp_path / "a").write_text("weights")
        write_manifest(tmp_path, PolicyManifest(7, 0, "lora", "b" * 64))
        coming, other = tmp_path / "v000007-0123456789ab", tmp_path / "v000070-0123456789ab"
        staging = asyncio.create_task(policies.stage(str(tmp_path), 7))
        while not engine.go.is_set():
            await asyncio.sleep(0)
            if policies.keeps(coming):
                assert not policies.keeps(other)
                engine.go.set()
        await staging
        assert not policies.keeps(coming)
        assert policies.keeps(tmp_path)

    asyncio.run(run())


def test_a_policy_that_is_gone_at_a_restart_is_named_with_the_way_out(tmp_path: Path) -> None:
    """A sampler that nobody had asked for a directory said: name the directory of a policy."""
    StateFile(tmp_path).write("b", State(3, str(tmp_path / "gone"), {}))
    made = PolicyRegistry(Engine(), PolicySettings(state_dir=tmp_path), Traffic(1))  # type: ignore[arg-type]
    with pytest.raises(
        NotFound, match=r"policy 3, which answered before the restart, .*gone is not.* or delete sampler"
    ):
        asyncio.run(made.start("b", "u"))
    made.stop()
