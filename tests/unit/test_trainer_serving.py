"""Publication and serving with a scripted sampler that is killed, or loses an answer, at the worst moments."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sightline.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed
from sightline.pictures import image_bytes
from sightline.sampler import Arrival, AsyncSamplerClient, Exact, PolicyManifest, policy_dirname, write_manifest
from sightline.sampler.manifest import read_arrival
from sightline_trainer.dpo.probing import UpdateProbe
from sightline_trainer.publish import publish
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.sections import Publication
from sightline_trainer.serving import RunPolicies, ServedSampler, serve


class Sampler:
    """Knows the versions it got; `trouble` names calls after which it is killed and restarts."""

    def __init__(self, *, loaded: tuple[int, ...] = (0,), active: int = 0, trouble: tuple[str, ...] = ()) -> None:
        self.loaded, self.active = set(loaded), active
        self.trouble = list(trouble)
        self.calls: list[str] = []

    def _did(self, call: str) -> None:
        self.calls.append(call)
        if call in self.trouble:
            self.trouble.remove(call)
            self.loaded, self.active = {0}, 0

    def _info(self, version: int, arrival: Any = None) -> Any:
        state = "active" if version == self.active else "staged"
        return SimpleNamespace(version=version, state=state, arrival=arrival)

    async def policies(self) -> Any:
        return SimpleNamespace(policies=[self._info(version) for version in sorted(self.loaded)])

    async def policy(self) -> Any:
        return self._info(self.active)

    async def deliver(self, directory: Path, version: int) -> Any:
        assert directory.name == f"v{version:06d}"
        if version in self.loaded:
            raise AlreadyExists("there", reason="POLICY_EXISTS")
        self.loaded.add(version)
        info = self._info(version)
        self._did(f"stage {version}")
        return info

    async def activate(self, version: int, probes: Any = ()) -> Any:
        if version not in self.loaded:
            raise NotFound("not loaded", reason="POLICY_NOT_FOUND")
        self.active = version
        info = self._info(version, ARRIVED if probes else None)
        self._did(f"activate {version}")
        return info

    async def retire(self, version: int) -> Any:
        self.calls.append(f"retire {version}")
        raise NotFound("not loaded", reason="POLICY_NOT_FOUND")


ARRIVED = Arrival(
    passed=True,
    reason="",
    previous_version=1,
    probes=1,
    tokens=2,
    changed=1.0,
    correlation=1.0,
    required_correlation=0.2,
    gap=0.001,
    previous_gap=0.001,
    moved=0.1,
    trainer_moved=0.1,
    sampled_gap=None,
    engine="e",
)


def policies(root: Path, *versions: int) -> RunPolicies:
    """A run's policies."""
    for version in versions:
        directory = root / policy_dirname(version)
        if not directory.exists():
            directory.mkdir()
            (directory / "weights").write_text(str(version))
            write_manifest(directory, PolicyManifest(version, version - 1, "lora", "0" * 64, run_id="run"))
    return RunPolicies(root, "run")


def published(sampler: Sampler, tmp_path: Path, version: int = 2, previous: int = 1, probes: int = 1) -> Any:
    return asyncio.run(
        publish(
            sampler,  # type: ignore[arg-type]
            policies(tmp_path, previous, version),
            version=version,
            previous=previous,
            probes=[UpdateProbe("a", [1, 2], [-1.0, -1.0], "p", [-1.1, -1.0])] * probes,
            prompts={"a": Prompt(id="a", images=(tmp_path / "a.png",), prompt="p")},
            settings=Publication(keep=1),
        )
    )


@pytest.mark.parametrize(
    "trouble", [(), ("stage 1",), ("activate 1",), ("stage 2",), ("activate 2",), ("stage 1", "stage 2", "activate 2")]
)
def test_a_sampler_that_is_killed_in_between_is_told_everything_again(trouble: tuple[str, ...], tmp_path: Path) -> None:
    sampler = Sampler(loaded=(0, 1), active=1, trouble=trouble)
    assert published(sampler, tmp_path) is ARRIVED
    assert sampler.active == 2
    assert (read_arrival(tmp_path / "v000002") or {})["passed"], "the proof goes with the policy"


def test_probes_with_their_images_fit_one_message(tmp_path: Path) -> None:
    sent: list[int] = []

    class Counting(Sampler):
        async def activate(self, version: int, probes: Any = ()) -> Any:
            sent.append(len(probes))
            return await super().activate(version, probes)

    for mib, fit in ((1, 8), (10, 4), (60, 1)):
        with (tmp_path / "a.png").open("wb") as file:
            file.truncate(mib << 20)
        published(Counting(loaded=(0, 1), active=1), tmp_path, probes=8)
        assert sent[-1] == fit


def test_a_sampler_that_is_killed_each_time_ends_the_run_in_the_end(tmp_path: Path) -> None:
    sampler = Sampler(loaded=(0, 1), active=1, trouble=("stage 2",) * 100)
    with pytest.raises(NotFound):
        published(sampler, tmp_path)


def test_an_old_policy_that_is_gone_already_is_retired(tmp_path: Path) -> None:
    sampler = Sampler(loaded=(0, 1), active=1)
    published(sampler, tmp_path)
    assert "retire 1" in sampler.calls


def test_somebody_else_who_publishes_is_noticed(tmp_path: Path) -> None:
    class Shared(Sampler):
        async def activate(self, version: int, probes: Any = ()) -> Any:
            info = await super().activate(version, probes)
            if version == 2:
                self.loaded.add(9)
                self.active = 9
            return info

    with pytest.raises(PreconditionFailed, match="something else publish") as caught:
        published(Shared(loaded=(0, 1), active=1), tmp_path)
    assert caught.value.reason == "POLICY_NOT_ACTIVE"


@pytest.mark.parametrize("trouble", [(), ("stage 3",), ("stage 3", "stage 3")])
def test_serving_outlives_a_kill_after_staging(trouble: tuple[str, ...], tmp_path: Path) -> None:
    sampler = Sampler(trouble=trouble)
    asyncio.run(serve(sampler, 3, policies(tmp_path, 3)))  # type: ignore[arg-type]
    assert sampler.active == 3
    before = list(sampler.calls)
    asyncio.run(serve(sampler, 3, policies(tmp_path, 3)))  # type: ignore[arg-type]
    assert sampler.calls == before


def test_what_is_wrong_with_an_image_names_its_file_where_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    async def sample(self: AsyncSamplerClient, image: Any, prompt: str, n: int, **options: Any) -> Any:
        image_bytes(image)
        raise InvalidInput("it is damaged", reason="IMAGE_UNREADABLE")

    async def error(image: Any) -> str:
        async with ServedSampler("127.0.0.1:1", policies=None) as client:
            with pytest.raises(InvalidInput) as caught:
                await client.sample(image, "what ?", 1)
            return caught.value.message

    monkeypatch.setattr(AsyncSamplerClient, "sample", sample)
    path = tmp_path / "a.png"
    assert asyncio.run(error(Image.new("RGB", (2, 2)))) == "it is damaged"
    assert asyncio.run(error(path)) == f"the image {path} cannot be read: No such file or directory"
    path.touch()
    assert asyncio.run(error(path)) == f"{path}: it is damaged"


def test_many_pairs_bring_back_a_policy_that_was_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[int] = []

    async def sample(self: AsyncSamplerClient, image: Any, prompt: str, n: int, *, policy: Exact) -> Any:
        if policy.version not in served:
            raise PreconditionFailed("lost", reason="POLICY_NOT_SERVED")
        return (prompt, policy.version)

    async def serve(client: AsyncSamplerClient, version: int, policies: RunPolicies) -> None:
        served.append(version)

    async def run() -> list[Any]:
        async with ServedSampler("127.0.0.1:1", policies=policies(tmp_path)) as client:
            return [outcome async for outcome in client.sample_many([(None, "a"), (None, "b")], 1, policy=Exact(3))]

    monkeypatch.setattr(AsyncSamplerClient, "sample", sample)
    monkeypatch.setattr("sightline_trainer.serving.serve", serve)
    assert asyncio.run(run()) == [("a", 3), ("b", 3)]
    assert set(served) == {3}
