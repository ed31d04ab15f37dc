"""Policies: weights that provably arrive, one version per candidate, and everything else refused."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import peft
import pytest
import torch
import yaml
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file
from sampler_models import PROMPT, Running, make_adapter, make_full, make_llava, png, running, seal
from sightline import (
    AlreadyExists,
    DataCorrupted,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    SightlineError,
)
from sightline.sampler import AsyncSamplerClient, SamplerClient, at_least, exact, manifest_digest, model_digest
from sightline_chassis.tokens import hash_of
from transformers import LlavaForConditionalGeneration

IMAGE = png(0)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory, llava: Path) -> Path:
    """v1, v2: adapters; v3: one on the vision tower too; v4: a full checkpoint."""
    root = tmp_path_factory.mktemp("policies")
    make_adapter(root, llava, 1)
    make_adapter(root, llava, 2)
    make_adapter(root, llava, 3, targets=["q_proj", "linear_2"])
    make_full(root, llava, 4)
    return root


@pytest.fixture
def sampler(llava: Path) -> Iterator[Running]:
    with running(llava, policies={"max_loaded": 3}) as at:
        yield at


@pytest.fixture
def client(sampler: Running) -> Iterator[SamplerClient]:
    with SamplerClient(sampler.address, timeout=60) as client:
        yield client


def answers(client: SamplerClient, **options: Any) -> list[tuple[list[int], list[float]]]:
    samples = client.sample(IMAGE, PROMPT, 6, **{"seed": 4, "max_tokens": 12, **options})
    assert {candidate.policy_version for candidate in samples.candidates} == {samples.policy_version}
    return [(c.token_ids.tolist(), c.logprobs.tolist()) for c in samples.candidates]


def teacher(directory: Path, base: Path, token_ids: Any) -> np.ndarray:
    """Log-probs by PEFT and transformers alone."""
    import io

    from PIL import Image
    from transformers import AutoProcessor

    if (directory / "adapter_config.json").exists():
        model: Any = peft.PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(base), directory)
    else:
        model = LlavaForConditionalGeneration.from_pretrained(directory)
    processor = AutoProcessor.from_pretrained(base)
    picture = Image.open(io.BytesIO(IMAGE)).convert("RGB")
    text = f"user : <image> {PROMPT} assistant :"
    batch = processor(images=[picture], text=[text], return_tensors="pt")
    length = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([list(token_ids)])], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        scores = torch.log_softmax(model.eval()(**batch).logits[0, length - 1 : -1].double(), dim=-1)
    return scores.gather(1, torch.tensor([list(token_ids)]).T)[:, 0].numpy()


@pytest.mark.parametrize("version", [1, 3, 4])
def test_a_published_policy_answers_and_the_base_comes_back_exactly(
    client: SamplerClient, policies: Path, llava: Path, version: int
) -> None:
    before = answers(client)
    staged = client.stage(policies / f"v00000{version}", version)
    assert (staged.version, staged.state, staged.kind) == (version, "staged", "full" if version == 4 else "lora")
    assert staged.digest == manifest_digest(policies / f"v00000{version}")
    assert staged.base_digest == model_digest(llava) == client.policy(0).digest
    assert staged.tensors > 0
    assert answers(client) == before, "a staged policy must not answer"

    assert client.activate(version).state == "active"
    assert client.policy().version == version
    after = answers(client)
    assert after != before
    for token_ids, logprobs in after:
        wanted = teacher(policies / f"v00000{version}", llava, token_ids)
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)
        scored = client.score_tokens(IMAGE, PROMPT, token_ids, policy=exact(version))
        np.testing.assert_allclose(scored.logprobs, wanted, atol=1e-4)

    client.activate(0)
    assert answers(client) == before
    assert client.retire(version).state == "retired"
    assert answers(client) == before
    assert [policy.version for policy in client.policies().policies] == [0]


def test_versions_answer_side_by_side(client: SamplerClient, policies: Path) -> None:
    base = answers(client)
    alone = {0: base}
    for version in (1, 2, 4):
        client.stage(policies / f"v00000{version}", version)
        alone[version] = answers(client, policy=exact(version))
    assert len({json.dumps(answer) for answer in alone.values()}) == 4
    client.activate(2)
    for version, wanted in alone.items():
        assert answers(client, policy=exact(version)) == wanted
    assert answers(client) == answers(client, policy=at_least(1)) == answers(client, policy=at_least(2)) == alone[2]
    with pytest.raises(
        PreconditionFailed, match=r"at least version 3 is not served; active is 2, loaded are 0, 1, 2, 4"
    ):
        client.sample(IMAGE, PROMPT, 1, policy=at_least(3))
    with pytest.raises(PreconditionFailed, match="policy 7 is not served") as error:
        client.sample(IMAGE, PROMPT, 1, policy=exact(7))
    assert error.value.reason == "POLICY_NOT_SERVED"
    assert {"active": "2", "loaded": "0,1,2,4"}.items() <= error.value.metadata.items()
    with pytest.raises(PreconditionFailed):
        client.score_tokens(IMAGE, PROMPT, [5, 6], policy=exact(7))


def test_swaps_under_load_never_mix_versions(sampler: Running, policies: Path) -> None:
    """While requests run all the time, v1, v2 and the base take turns; each candidate is one version's, whole."""

    async def run() -> dict[int, int]:
        seen: dict[int, int] = {}
        async with AsyncSamplerClient(sampler.address) as client:
            for version in (1, 2):
                await client.stage(policies / f"v00000{version}", version)
            wanted = {}
            for version in (0, 1, 2):
                samples = await client.sample(IMAGE, PROMPT, 4, seed=8, max_tokens=20, policy=exact(version))
                wanted[version] = [c.token_ids.tolist() for c in samples.candidates]
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    samples = await client.sample(IMAGE, PROMPT, 4, seed=8, max_tokens=20)
                    versions = {c.policy_version for c in samples.candidates}
                    assert versions == {samples.policy_version}
                    assert [c.token_ids.tolist() for c in samples.candidates] == wanted[samples.policy_version]
                    seen[samples.policy_version] = seen.get(samples.policy_version, 0) + 1

            asked = [asyncio.create_task(ask()) for _ in range(6)]
            for version in (1, 2, 0, 2, 1, 0):
                await client.activate(version)
                (fresh,) = (await client.sample(IMAGE, PROMPT, 1, seed=8, max_tokens=20)).candidates
                assert fresh.policy_version == version, "what is asked after an activation is answered by it"
                await asyncio.sleep(0.15)
            retired = [await client.retire(version) for version in (1, 2)]  # waits for those under way
            assert {policy.state for policy in retired} == {"retired"}
            stop.set()
            await asyncio.gather(*asked)
        return seen

    assert set(asyncio.run(run())) == {0, 1, 2}


def test_the_oldest_idle_policy_makes_room(client: SamplerClient, policies: Path) -> None:
    for version in (1, 2, 3):
        client.stage(policies / f"v00000{version}", version)
    client.activate(1)
    client.stage(policies / "v000004", 4)
    assert [(p.version, p.state) for p in client.policies().policies] == [
        (0, "staged"), (1, "active"), (3, "staged"), (4, "staged"),
    ]  # fmt: skip
    with pytest.raises(PreconditionFailed, match="is active: activate another one first"):
        client.retire(1)
    with pytest.raises(PreconditionFailed, match="base model"):
        client.retire(0)
    with pytest.raises(NotFound):
        client.retire(2)
    with pytest.raises(NotFound):
        client.activate(2)
    with pytest.raises(NotFound):
        client.policy(2)
    client.stage(policies / "v000002", 2)  # the same weights as before may come back
    assert client.policy(2).state == "staged"


# Each spoils a good copy of v1 (given the directory and the base model) and names the error.


def _half_written(path: Path, base: Path) -> None:
    (path / "manifest.json").unlink()


def _missing_file(path: Path, base: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def _extra_file(path: Path, base: Path) -> None:
    (path / "optimizer.pt").write_bytes(b"x")


def _changed_file(path: Path, base: Path) -> None:
    file = path / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _bad_manifest(path: Path, base: Path) -> None:
    (path / "manifest.json").write_text("{")


def _wrong_version(path: Path, base: Path) -> None:
    seal(path, base, 2, "lora")


def _wrong_base(path: Path, base: Path) -> None:
    seal(path, base, 1, "lora", base_digest="0" * 64)


def _rename_keys(path: Path, base: Path, old: str, new: str) -> None:
    file = path / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(file).items()}, file)
    seal(path, base, 1, "lora")


def _wrong_prefix(path: Path, base: Path) -> None:
    _rename_keys(path, base, "base_model.model.model.language_model", "base_model.model.language_model.model")


def _missing_keys(path: Path, base: Path) -> None:
    file = path / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if "layers.1" not in key}, file)
    seal(path, base, 1, "lora")


def _unexpected_keys(path: Path, base: Path) -> None:
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(iter(tensors))
    save_file({**tensors, key.replace("layers.0", "layers.9"): tensors[key].clone()}, file)
    seal(path, base, 1, "lora")


def _other_shape(path: Path, base: Path) -> None:
    file = path / "adapter_model.safetensors"
    save_file({key: tensor[:1] if "lora_A" in key else tensor for key, tensor in load_file(file).items()}, file)
    seal(path, base, 1, "lora")


def _no_effect(path: Path, base: Path) -> None:
    file = path / "adapter_model.safetensors"
    save_file({key: tensor * (0 if "lora_B" in key else 1) for key, tensor in load_file(file).items()}, file)
    seal(path, base, 1, "lora")


def _not_finite(path: Path, base: Path) -> None:
    file = path / "adapter_model.safetensors"
    save_file({key: tensor * (float("nan") if "lora_B" in key else 1) for key, tensor in load_file(file).items()}, file)
    seal(path, base, 1, "lora")


def _no_targets(path: Path, base: Path) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["nothing_like_it"]}))
    seal(path, base, 1, "lora")


def _no_adapter(path: Path, base: Path) -> None:
    (path / "adapter_model.safetensors").write_bytes(b"no tensors at all")
    seal(path, base, 1, "lora")


def _adapter_as_full(path: Path, base: Path) -> None:
    seal(path, base, 1, "full")


def _base_as_full(path: Path, base: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(base, path)
    seal(path, base, 1, "full")


def _other_architecture(path: Path, base: Path) -> None:
    shutil.rmtree(path)
    make_llava(path, heads=8, kv_heads=8)
    (path / "model.safetensors").unlink()
    shutil.copy(base / "model.safetensors", path)
    seal(path, base, 1, "full")


@pytest.mark.parametrize(
    ("spoil", "error", "reason", "names"),
    [
        (_half_written, PreconditionFailed, "POLICY_HALF_WRITTEN", "half-written"),
        (_missing_file, PreconditionFailed, "POLICY_MISSING_FILE", "adapter_model.safetensors"),
        (_extra_file, PreconditionFailed, "POLICY_EXTRA_FILE", "optimizer.pt"),
        (_changed_file, DataCorrupted, "POLICY_CHANGED_FILE", "adapter_model.safetensors"),
        (_bad_manifest, PreconditionFailed, "POLICY_BAD_MANIFEST", "manifest.json"),
        (_wrong_version, PreconditionFailed, "VERSION_MISMATCH", "version 2, not 1"),
        (_wrong_base, PreconditionFailed, "WRONG_BASE_MODEL", "0000"),
        (_wrong_prefix, PreconditionFailed, "ADAPTER_KEYS_DO_NOT_MATCH", "q_proj.lora_A.weight"),
        (_missing_keys, PreconditionFailed, "ADAPTER_KEYS_DO_NOT_MATCH", "layers.1"),
        (_unexpected_keys, PreconditionFailed, "ADAPTER_KEYS_DO_NOT_MATCH", "layers.9"),
        (_other_shape, PreconditionFailed, "ADAPTER_KEYS_DO_NOT_MATCH", "shape"),
        (_no_effect, PreconditionFailed, "POLICY_CHANGES_NOTHING", "nothing"),
        (_not_finite, PreconditionFailed, "WEIGHTS_NOT_FINITE", "lora_B"),
        (_no_targets, PreconditionFailed, "ADAPTER_DOES_NOT_FIT", "nothing_like_it"),
        (_no_adapter, PreconditionFailed, "ADAPTER_UNREADABLE", "not a PEFT adapter"),
        (_adapter_as_full, PreconditionFailed, "WEIGHTS_DO_NOT_FIT", "an adapter"),
        (_base_as_full, PreconditionFailed, "POLICY_CHANGES_NOTHING", "base model"),
        (_other_architecture, PreconditionFailed, "WEIGHTS_DO_NOT_FIT", "mismatched keys"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) and not isinstance(value, type) else "",
)
def test_a_policy_that_is_not_what_it_says_is_refused(
    shared: Running, policies: Path, llava: Path, tmp_path: Path,
    spoil: Any, error: type[SightlineError], reason: str, names: str,
) -> None:  # fmt: skip
    path = tmp_path / "v000001"
    shutil.copytree(policies / "v000001", path)
    spoil(path, llava)
    with SamplerClient(shared.address) as client:
        before = answers(client)
        with pytest.raises(error, match=names) as caught:
            client.stage(path, 1)
        assert caught.value.reason == reason
        assert [policy.version for policy in client.policies().policies] == [0]
        assert answers(client) == before


@pytest.fixture(scope="module")
def shared(llava: Path) -> Iterator[Running]:
    """One sampler for the tests that leave it as it was."""
    with running(llava) as at:
        yield at


def test_versions_only_grow(client: SamplerClient, policies: Path, llava: Path, tmp_path: Path) -> None:
    client.stage(policies / "v000002", 2)
    with pytest.raises(AlreadyExists, match="policy 2 is staged here") as error:
        client.stage(policies / "v000002", 2)
    assert error.value.metadata["digest"] == manifest_digest(policies / "v000002")
    with pytest.raises(
        PreconditionFailed, match="version 1 is too low: versions of a run only grow, and 2 was staged before"
    ) as refused:
        client.stage(policies / "v000001", 1)
    assert refused.value.reason == "VERSION_NOT_NEW"
    client.retire(2)
    other = make_adapter(tmp_path, llava, 2, seed=7)
    with pytest.raises(PreconditionFailed, match="other weights before") as reused:
        client.stage(other, 2)
    assert reused.value.reason == "VERSION_REUSED"
    for version in (0,):
        with pytest.raises(InvalidInput, match="0 is the base model"):
            client.stage(policies / "v000002", version)


def test_where_policies_may_come_from(llava: Path, policies: Path, tmp_path: Path) -> None:
    with running(llava, policies={"root": str(policies)}) as at, SamplerClient(at.address) as client:
        with pytest.raises(NotFound, match="not a directory"):
            client.stage(policies / "v000009", 9)
        outside = tmp_path / "v000001"
        shutil.copytree(policies / "v000001", outside)
        for path in (outside, policies / ".." / outside.name, Path("/etc")):
            with pytest.raises(PermissionDenied, match="is not under"):
                client.stage(path, 1)
        for uri in ("", "v000001", "simplecache::s3://bucket/v000001", "S 3://bucket"):
            with pytest.raises(InvalidInput), grpc.insecure_channel(at.address) as channel:
                _stage_raw(channel, uri)
        with (
            pytest.raises(PermissionDenied, match="may not be loaded from s3"),
            grpc.insecure_channel(at.address) as channel,
        ):
            _stage_raw(channel, "s3://bucket/v000001")
        assert client.stage(policies / "v000001", 1).state == "staged"


def _stage_raw(channel: grpc.Channel, uri: str) -> None:
    from sightline.errors import typed_errors
    from sightline.sampler.v1 import sampler_pb2 as pb
    from sightline.sampler.v1.sampler_pb2_grpc import SamplerServiceStub

    with typed_errors():
        SamplerServiceStub(channel).StagePolicy(pb.StagePolicyRequest(uri=uri, version=1))


def test_the_last_activated_policy_comes_back_after_a_restart(llava: Path, policies: Path, tmp_path: Path) -> None:
    section = {"state_dir": str(tmp_path / "state")}
    with running(llava, policies=section) as at, SamplerClient(at.address) as client:
        client.stage(policies / "v000001", 1)
        client.activate(1)
        client.stage(policies / "v000002", 2)
        wanted = answers(client)
    with running(llava, policies=section) as at, SamplerClient(at.address) as client:
        assert [(p.version, p.state) for p in client.policies().policies] == [(0, "staged"), (1, "active")]
        assert answers(client) == wanted
        client.activate(0)
    with running(llava, policies=section) as at, SamplerClient(at.address) as client:
        assert client.policy().version == 0
        other = make_adapter(tmp_path, llava, 1, seed=7)
        with pytest.raises(PreconditionFailed, match="other weights before"):
            client.stage(other, 1)
    (tmp_path / "state/sampler.json").write_text("[")
    with (
        pytest.raises(PreconditionFailed, match="delete it to start from the base model"),
        running(llava, policies=section),
    ):
        pass


def test_a_team_stages_as_many_policies_as_it_may(llava: Path, policies: Path, tmp_path: Path) -> None:
    tokens = {"red": "red-" + "r" * 40, "blue": "blue-" + "b" * 40}
    teams = {team: {"tokens": [hash_of(t)], "limits": {"staged_policies": 1}} for team, t in tokens.items()}
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump({"teams": teams}))
    with (
        running(llava, auth={"tokens_file": tmp_path / "tokens.yaml"}) as at,
        SamplerClient(at.address, token=tokens["red"]) as red,
        SamplerClient(at.address, token=tokens["blue"]) as blue,
    ):
        red.stage(policies / "v000001", 1)
        with pytest.raises(Overloaded, match=r"retire one .RetirePolicy., or have the limit raised") as caught:
            red.stage(policies / "v000002", 2)
        assert (caught.value.reason, caught.value.retry_after) == ("TEAM_STAGED_POLICIES", None)
        blue.stage(policies / "v000002", 2)
        held = [REGISTRY.get_sample_value("sightline_team_stored", {"team": t, "what": "policies"}) for t in tokens]
        assert held == [1, 1]
        red.retire(1)
        red.stage(policies / "v000003", 3)
