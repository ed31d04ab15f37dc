"""A fleet of scripted samplers: which one is asked, which is left out, and when a publication fails."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sightline.errors import PreconditionFailed, Unavailable
from sightline_trainer import fleet
from sightline_trainer.fleet import Fleet, addresses_of, is_fleet
from sightline_trainer.serving import RunPolicies
from sightline_trainer.session import Session


class Member:
    """Answers after a moment; `up` sets whether it is available."""

    def __init__(self, address: str, log: list[str]) -> None:
        self.address, self.log = address, log
        self.up, self.refuses = True, False

    async def sample(self, image: Any, prompt: str, n: int, **options: Any) -> Any:
        if not self.up:
            raise Unavailable("away")
        self.log.append(self.address)
        await asyncio.sleep(0.01)
        if not self.up:
            raise Unavailable("killed")
        return SimpleNamespace(prompt=prompt, by=self.address)

    async def take(self) -> str:
        if not self.up:
            raise Unavailable("away")
        if self.refuses:
            raise PreconditionFailed("other weights", reason="POLICY_DID_NOT_ARRIVE")
        return self.address

    async def close(self) -> None:
        """There is nothing to close."""


def run(
    count: int, work: Callable[[Fleet, dict[str, Member], list[str]], Any], outage: float = 5, **options: Any
) -> Any:
    """Run `work` with a fleet of scripted members."""
    log: list[str] = []
    made: dict[str, Member] = {}

    class Scripted(Fleet):
        def _connect(self, address: str) -> Any:
            return made.setdefault(address, Member(address, log))

    async def main() -> Any:
        target = "ipv4:" + ",".join(f"10.0.0.{number + 1}:1" for number in range(count))
        policies = RunPolicies(Path("/none"), "run")
        async with Scripted(target, policies=policies, outage_seconds=outage, **options) as client:
            await client.members()
            return await work(client, made, log)

    return asyncio.run(main())


def test_the_least_loaded_is_asked() -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        await asyncio.gather(*(client.sample(None, str(number), 1) for number in range(12)))
        assert {name: log.count(name) for name in members} == {"10.0.0.1:1": 4, "10.0.0.2:1": 4, "10.0.0.3:1": 4}

    run(3, work)


def test_each_member_is_kept_as_busy_as_one_alone() -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        recipe: Any = SimpleNamespace(sampling=SimpleNamespace(max_in_flight=32))
        session: Any = SimpleNamespace(sampler=client, recipe=recipe)
        assert await Session.in_flight(session) == 96
        session.sampler = None
        assert await Session.in_flight(session) == 32

    run(3, work)


def test_what_a_member_lost_is_asked_of_another_and_nothing_comes_twice() -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        asked = [asyncio.create_task(client.sample(None, str(number), 1)) for number in range(20)]
        await asyncio.sleep(0.005)
        members["10.0.0.1:1"].up = False
        got: list[Any] = await asyncio.gather(*asked)
        assert [one.prompt for one in got] == [str(number) for number in range(20)]
        assert {one.by for one in got} == {"10.0.0.2:1"}
        members["10.0.0.1:1"].up = True
        await asyncio.sleep(0.6)
        back: list[Any] = await asyncio.gather(*(client.sample(None, "x", 1) for _ in range(4)))
        assert {one.by for one in back} == {"10.0.0.1:1", "10.0.0.2:1"}, "it is asked again"

    run(2, work)


def test_a_policy_goes_to_all_and_one_that_fails_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        members["10.0.0.2:1"].refuses = True
        done = await client.each(lambda one: one.take(), "take policy 3", 1)  # type: ignore[attr-defined]
        assert set(done) == {"10.0.0.1:1", "10.0.0.3:1"}
        assert "10.0.0.2:1 is left out for now" in caplog.text
        await asyncio.gather(*(client.sample(None, "x", 1) for _ in range(6)))
        assert "10.0.0.2:1" not in log

    run(3, work)


def test_less_than_the_quorum_is_a_failure_that_says_how_many() -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        members["10.0.0.2:1"].up = False
        with pytest.raises(Unavailable, match="1 of 2 samplers could take policy 3"):
            await client.each(lambda one: one.take(), "take policy 3", 1)  # type: ignore[attr-defined]

    run(2, work, quorum=1.0, outage=0.1)


def test_a_fleet_of_one_outlives_its_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """During a rolling update of a single replica, the Service has no pod for a while."""
    monkeypatch.setattr(fleet, "_PAUSE", 0.05)
    monkeypatch.setattr(fleet, "_LOOK_UP_SECONDS", 0)
    found = ["10.0.0.1:1"]

    def look_up(target: str) -> list[str]:
        if not found:
            raise OSError("no such name")
        return list(found)

    monkeypatch.setattr(fleet, "addresses_of", look_up)

    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        members["10.0.0.1:1"].up = False
        taking = asyncio.create_task(client.each(lambda one: one.take(), "serve policy 3", 1))  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        assert not taking.done()
        found[:] = ["10.0.0.2:1"]
        assert set(await taking) == {"10.0.0.2:1"}

    run(1, work)


def test_one_that_takes_too_long_is_left_out() -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        async def take(one: Any) -> str:
            await asyncio.sleep(5 if one.address == "10.0.0.1:1" else 0)
            return str(one.address)

        assert set(await client.each(take, "take policy 3", 0.05)) == {"10.0.0.2:1"}

    run(2, work)


def test_all_being_away_ends_when_the_outage_does() -> None:
    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        client._outage = 0.3
        for member in members.values():
            member.up = False
        with pytest.raises(Unavailable):
            await client.sample(None, "x", 1)

    run(2, work)


def test_members_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_LOOK_UP_SECONDS", 0)
    found = ["10.0.0.1:1"]
    monkeypatch.setattr(fleet, "addresses_of", lambda target: list(found))

    async def work(client: Fleet, members: dict[str, Member], log: list[str]) -> None:
        assert [member.address for member in await client.members()] == ["10.0.0.1:1"]
        found[:] = ["10.0.0.2:1", "10.0.0.3:1"]
        assert [member.address for member in await client.members()] == ["10.0.0.2:1", "10.0.0.3:1"]

    run(1, work)


def test_targets() -> None:
    assert addresses_of("ipv4:10.0.0.2:5,10.0.0.1:5") == ["10.0.0.1:5", "10.0.0.2:5"]
    assert addresses_of("dns:///127.0.0.1:5") == addresses_of("dns:127.0.0.1:5") == ["127.0.0.1:5"]
    assert not is_fleet("127.0.0.1:5")
    assert is_fleet("dns:///sampler.ns.svc:5")
