"""Bound on the bytes of a team's pushed policies: its own oldest make room, and nobody else's."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sightline.errors import Overloaded, PreconditionFailed
from sightline.sampler.manifest import PolicyManifest, write_manifest
from sightline.sampler.pushing import Parcel
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_sampler.policies.pushers import Pusher
from sightline_sampler.policies.received import ReceivedPolicies
from sightline_sampler.policies.staging import discard
from sightline_sampler.settings import PolicySettings

BYTES = 1000


class Store:
    """Pushed policies in a directory, some of them loaded."""

    def __init__(self, root: Path) -> None:
        self._root, self.into = root, root / "downloads"
        self.loaded: set[str] = set()
        self.settings = PolicySettings(download_dir=self.into)
        self._received = ReceivedPolicies(self.settings, lambda path: path.name[:7] in self.loaded)

    def parcel(self, run: str, version: int) -> Parcel:
        directory = self._root / run / f"v{version:06d}"
        if not directory.exists():
            directory.mkdir(parents=True)
            (directory / "weights").write_bytes(os.urandom(BYTES))
            write_manifest(directory, PolicyManifest(version, 0, "lora", "0" * 64, run_id=run))
        return Parcel(directory)

    def push(self, parcel: Parcel, pusher: Pusher, *, whole: bool = True) -> str:
        async def send(missing: Sequence[pb.MissingFile]) -> pb.PushPolicyResponse:
            async def requests() -> AsyncIterator[pb.PushPolicyRequest]:
                for message in parcel.messages(missing):
                    yield message

            return await self._received.receive(requests(), pusher)

        answer = asyncio.run(send(()))
        return asyncio.run(send(answer.missing)).uri if answer.missing and whole else answer.uri

    def here(self) -> list[str]:
        return sorted(path.name[:7] for path in self.into.glob("v0*"))

    def silent(self) -> None:
        """Everything arrived long ago."""
        for record in (self.into / ".pushed").glob("*.team"):
            os.utime(record, (0, 0))


def held(team: str) -> float | None:
    return REGISTRY.get_sample_value("sightline_team_stored", {"team": team, "what": "pushed_policy_bytes"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_loaded_stays_and_one_more_is_refused_with_what_to_do(store: Store) -> None:
    red = Pusher("red", 2 * BYTES - 1)
    assert store.push(store.parcel("red", 1), red)
    store.loaded = {"v000001"}
    with pytest.raises(Overloaded, match=r"pushed_policy_bytes = 1999.: retire one .RetirePolicy.") as caught:
        store.push(store.parcel("red", 2), red)
    assert (caught.value.reason, caught.value.retry_after) == ("TEAM_PUSHED_POLICY_BYTES", None)
    assert (store.here(), held("red")) == (["v000001"], BYTES)
    refused = {"team": "red", "limit": "pushed_policy_bytes"}
    assert (REGISTRY.get_sample_value("sightline_team_refused_total", refused) or 0) >= 1
    assert store.push(store.parcel("red", 1), red), "what is here costs nothing"
    assert store.push(store.parcel("blue", 3), Pusher("blue", 2 * BYTES - 1)), "a share of its own"
    discard(next(store.into.glob("v000001-*")), store.settings)
    assert held("red") == 0
    assert store.push(store.parcel("red", 2), red)


def test_its_own_oldest_that_is_not_loaded_makes_room(store: Store) -> None:
    red = Pusher("red", 2 * BYTES)
    assert store.push(store.parcel("blue", 9), Pusher("blue"))
    for version in (1, 2):
        assert store.push(store.parcel("red", version), red)
        store.silent()
    store.loaded = {"v000001"}
    assert store.push(store.parcel("red", 3), red)
    assert store.here() == ["v000001", "v000003", "v000009"]
    assert (held("red"), held("blue")) == (2 * BYTES, BYTES)


def test_one_that_was_broken_off_counts_until_it_is_silent(store: Store) -> None:
    red = Pusher("red", 2 * BYTES - 1)
    assert not store.push(store.parcel("red", 1), red, whole=False)
    with pytest.raises(Overloaded, match="loaded or arriving"):
        store.push(store.parcel("red", 2), red)
    store.silent()
    assert store.push(store.parcel("red", 2), red)
    assert [path.suffix for path in (store.into / ".pushed").iterdir()] == [".team"]


def test_what_two_teams_push_is_the_first_one_s(store: Store) -> None:
    parcel = store.parcel("red", 1)
    assert not store.push(parcel, Pusher("first"), whole=False)
    assert store.push(parcel, Pusher("second", BYTES))
    assert (held("first"), held("second")) == (BYTES, None)
    assert store.push(store.parcel("red", 2), Pusher("second", BYTES))


def test_a_restart_forgets_nobody_s_share(store: Store, tmp_path: Path) -> None:
    assert store.push(store.parcel("red", 1), Pusher("red", BYTES))
    again = Store(tmp_path)
    again.loaded = {"v000001"}
    with pytest.raises(Overloaded, match="1000 bytes"):
        again.push(again.parcel("red", 2), Pusher("red", BYTES))
    (again.into / ".pushed" / "v000001-nonsense.team").write_text("[")
    again.loaded = set()
    assert again.push(again.parcel("red", 2), Pusher("red", BYTES))


def test_one_that_alone_is_too_large_takes_nobody_s_place(store: Store) -> None:
    assert store.push(store.parcel("red", 1), Pusher("red", BYTES))
    store.settings = PolicySettings(download_dir=store.into, max_download_gib=1e-9)
    small = ReceivedPolicies(store.settings, lambda path: False)

    async def push() -> None:
        async def requests() -> AsyncIterator[pb.PushPolicyRequest]:
            for message in store.parcel("red", 2).messages(()):
                yield message

        await small.receive(requests(), Pusher("red", BYTES))

    with pytest.raises(PreconditionFailed, match="max_download_gib"):
        asyncio.run(push())
    assert store.here() == ["v000001"]
