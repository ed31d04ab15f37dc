"""A policy that is not a policy: scales without measure, proofs that are not there, manifests that nobody can read."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sampler_models import PROMPT, make_adapter, make_full, make_llava, png, running, seal
from sightline import InternalError, PreconditionFailed, SightlineError
from sightline.sampler import SamplerClient, exact
from sightline.sampler.manifest import ARRIVAL, MANIFEST, manifest_digest, write_arrival
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc
from sightline_sampler.engines.remote.merge import merge
from sightline_sampler.engines.tensorfiles import check_adapter

pytestmark = pytest.mark.field

IMAGE = png(0)
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def address(llava: Path) -> Iterator[str]:
    with running(llava) as at:
        yield at.address


@pytest.fixture
def client(address: str) -> Iterator[SamplerClient]:
    with SamplerClient(address, timeout=60) as client:
        yield client
        for policy in client.policies().policies:
            if policy.version:
                client.retire(policy.version)


def scaled(root: Path, base: Path, version: int, **config: Any) -> Path:
    """An adapter whose config says so; its manifest is right."""
    directory = make_adapter(root, base, version)
    (directory / MANIFEST).unlink()
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    seal(directory, base, version, "lora")
    return directory


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"lora_alpha": NAN}, "WEIGHTS_NOT_FINITE"),
        ({"lora_alpha": 1e30}, "WEIGHTS_NOT_FINITE"),
        ({"lora_alpha": -INFINITE}, "WEIGHTS_NOT_FINITE"),
        ({"lora_alpha": 1e30, "use_rslora": True}, "WEIGHTS_NOT_FINITE"),
        ({"alpha_pattern": {"q_proj": NAN}}, "WEIGHTS_NOT_FINITE"),
        ({"lora_alpha": 0}, "POLICY_CHANGES_NOTHING"),
        ({"lora_alpha": "8"}, None),
        ({"r": NAN}, None),
    ],
)
def test_an_adapters_scale_is_checked_as_its_weights_are(
    client: SamplerClient, llava: Path, tmp_path: Path, config: dict[str, Any], reason: str | None
) -> None:
    directory = scaled(tmp_path, llava, 1, **config)
    with pytest.raises(PreconditionFailed) as error:
        client.stage(directory, 1)
    assert reason is None or error.value.reason == reason
    with pytest.raises(PreconditionFailed) as error:  # the engines that live elsewhere
        check_adapter(directory, llava, most_rank=64, tower=True)
    assert reason is None or error.value.reason == reason
    assert [policy.version for policy in client.policies().policies] == [0]


def test_an_adapter_that_overflows_its_base_is_not_merged(llava: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path, llava, 1)
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file({name: tensor * np.float32(1e30) for name, tensor in tensors.items()},
              directory / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(PreconditionFailed) as error:
        merge(directory, llava, tmp_path / "merged")
    assert error.value.reason == "WEIGHTS_NOT_FINITE"
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_not_finite_is_no_score(client: SamplerClient, llava: Path, tmp_path: Path, kind: str) -> None:
    """Each weight is finite, and what is computed with them is not."""
    version = client.policies().highest_version + 1
    make = make_adapter if kind == "lora" else make_full
    directory = make(tmp_path, llava, version)
    (directory / MANIFEST).unlink()
    for file in directory.glob("*.safetensors"):
        tensors = {name: tensor * np.float32(3e20) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    seal(directory, llava, version, kind)
    client.stage(directory, version)
    with pytest.raises(InternalError) as error:
        client.score_tokens(IMAGE, PROMPT, [5, 6, 7], policy=exact(version))
    assert error.value.reason == "LOGITS_NOT_FINITE"
    with pytest.raises(InternalError) as error:
        client.sample(IMAGE, PROMPT, 1, max_tokens=4, policy=exact(version))
    assert error.value.reason == "LOGITS_NOT_FINITE"
    assert np.isfinite(client.score_tokens(IMAGE, PROMPT, [5, 6, 7], policy=exact(0)).logprobs).all()


def test_a_policy_without_probes_answers_nobody(llava: Path, tmp_path: Path) -> None:
    """Required unless turned off by name: not when it is activated, and not to who names it either."""
    directory = make_adapter(tmp_path, llava, 1)
    with running(llava, policies={}) as off, SamplerClient(off.address, timeout=60) as client:
        client.stage(directory, 1)
        client.activate(1)  # the tests' samplers turn it off
    with running(llava, policies={"gate": {}}) as at, SamplerClient(at.address, timeout=60) as client:
        client.stage(directory, 1)
        with pytest.raises(PreconditionFailed, match="came without probes") as error:
            client.activate(1)
        assert error.value.reason == "PROBES_REQUIRED"
        with pytest.raises(PreconditionFailed, match="came without probes"):
            client.sample(IMAGE, PROMPT, 1, max_tokens=4, policy=exact(1))
        with pytest.raises(PreconditionFailed, match="came without probes"):
            client.score_tokens(IMAGE, PROMPT, [5, 6, 7], policy=exact(1))


@pytest.mark.parametrize("forged", [False, True])
def test_a_sampler_that_lost_a_proven_policy_takes_it_back(llava: Path, tmp_path: Path, forged: bool) -> None:
    """The trainer gives it again without probes; the report of the first time is of these very files, or no proof."""
    directory = make_adapter(tmp_path, llava, 1)
    with running(llava, policies={"gate": {}}) as at, SamplerClient(at.address, timeout=60) as client:
        digest = "0" * 64 if forged else manifest_digest(directory)
        report: dict[str, Any] = dict.fromkeys(
            ("changed", "correlation", "required_correlation", "gap", "previous_gap", "moved", "trainer_moved"), 0.5
        )
        report |= {"passed": True, "reason": "", "previous_version": 0, "probes": 1, "tokens": 20, "sampled_gap": None}
        engine = client.policies().capabilities.engine
        write_arrival(directory, report | {"engine": engine, "digest": digest, "policy_version": 1})
        client.stage(directory, 1)
        with pytest.raises(PreconditionFailed) if forged else contextlib.nullcontext():
            assert client.activate(1).version == 1


def _deep(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"metrics": ' + '{"a":' * 200_000)


def _fifo(name: str) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)

    return put


def _endless(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    (directory / MANIFEST).symlink_to("/dev/zero")


def _large(directory: Path) -> None:
    with (directory / MANIFEST).open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_deep, "POLICY_BAD_MANIFEST"),
        (_fifo(MANIFEST), "POLICY_UNSAFE_NAME"),
        (_fifo(ARRIVAL), "POLICY_UNSAFE_NAME"),
        (_fifo("adapter_config.json"), "POLICY_UNSAFE_NAME"),
        (_endless, "POLICY_UNSAFE_NAME"),
        (_large, "POLICY_BAD_MANIFEST"),
    ],
)
def test_a_manifest_that_nobody_can_read_is_refused_and_holds_up_nothing(
    client: SamplerClient, llava: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    version = client.policies().highest_version + 1
    directory = make_adapter(tmp_path, llava, version)
    spoil(directory)
    with pytest.raises(SightlineError) as error:
        client.stage(directory, version)
    assert error.value.reason == reason


def test_headers_of_deep_json_are_refused(llava: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path, llava, 1)
    deep = ('{"a":' * 200_000).encode()
    (directory / "adapter_model.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(PreconditionFailed, match="holds no tensors"):
        check_adapter(directory, llava, most_rank=64, tower=True)
    (directory / "adapter_config.json").write_bytes(deep)
    with pytest.raises(PreconditionFailed, match="cannot be read"):
        check_adapter(directory, llava, most_rank=64, tower=True)


@pytest.mark.parametrize("uri", ["/" + "a" * 300, "/a\0b", "file:///" + "a" * 5000, "/tmp/" + "d/" * 3000])
def test_a_path_that_no_file_system_has_is_refused(client: SamplerClient, uri: str) -> None:
    with pytest.raises(SightlineError) as error:
        client.stage(uri, client.policies().highest_version + 1)
    assert error.value.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("mode", [99, -1, 2**31 - 1])
def test_a_pause_of_an_unknown_kind_is_refused(address: str, client: SamplerClient, mode: int) -> None:
    with grpc.insecure_channel(address) as channel:
        stub: Any = sampler_pb2_grpc.SamplerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Pause(pb.PauseRequest(mode=mode), timeout=20)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "not a known pause mode" in error.value.details()  # type: ignore[attr-defined]
