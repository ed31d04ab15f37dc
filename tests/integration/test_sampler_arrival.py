"""Weights that did not arrive are caught: six faults, each in twenty variations, on a server that answers 200 to all.

vLLM's adapters, because there the faults are silent; the engine in process and TGI have theirs below and in
tests/contract/test_sampler_tgi.py. A variation is another policy (its own random adapter), picture and probes, with the
noise on the trainer's numbers that bfloat16 would put there.
"""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_mind import Mind
from engine_server import serving_app
from engine_trainer import probes
from safetensors.torch import load_file, save_file
from sampler_models import PROMPT, make_adapter, make_llava, png, running, seal
from sightline import PreconditionFailed, SightlineError
from sightline.sampler import Probe, SamplerClient, policy_dirname
from sightline.sampler.turns import user_turn
from sightline_sampler.engines.base import Conversation, EncodedImage
from sightline_sampler.engines.remote.vllm import VllmEngine
from sightline_sampler.policies.proving import ProbeQuestion
from sightline_sampler.policies.registry import PolicyRegistry
from sightline_sampler.settings import EngineSettings, GateSettings, PolicySettings, SamplerLimits
from sightline_sampler.traffic import Traffic
from vllm_server import VllmServer

VARIATIONS = [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 1)) for seed in range(20)]
NOISE = 0.02
GATE = {"sampled_tokens": 6}


@pytest.fixture(scope="module")
def mind(tmp_path_factory: pytest.TempPathFactory) -> Mind:
    return Mind(make_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, mind: Mind) -> Path:
    return make_adapter(tmp_path_factory.mktemp("template"), mind.directory, 1)


def adapter(to: Path, template: Path, mind: Mind, version: int, *, seed: int, parent: int = 0) -> Path:
    """A policy of its own: the template's shapes, other numbers."""
    directory = to / policy_dirname(version)
    directory.mkdir(parents=True)
    shutil.copy(template / "adapter_config.json", directory)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (0.2 if "lora_B" in name else 0.1) * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(template / "adapter_model.safetensors").items()
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    seal(directory, mind.directory, version, "lora", parent_version=parent)
    return directory


def questions(sent: list[Probe]) -> list[ProbeQuestion]:
    """As the service reads them."""
    return [
        ProbeQuestion(
            Conversation(user_turn(str(probe.prompt), 1), (EncodedImage(bytes(probe.image), str(index)),)),  # type: ignore[arg-type]
            probe.token_ids,
            np.array(probe.logprobs),
            np.array(probe.previous_logprobs),
        )
        for index, probe in enumerate(sent)
    ]


class Rig:
    """A policy registry on a vLLM, with version 1 active, and version 2 to come."""

    def __init__(self, mind: Mind, template: Path, folder: Path, seed: int) -> None:
        self.mind, self.template, self.folder, self.seed = mind, template, folder, seed
        self.server = VllmServer(mind)
        self.image = png(seed, 32)

    async def run(self, fault: Callable[["Rig"], Awaitable[None] | None] | None) -> None:
        """Publishes version 1, then with the fault version 2."""
        with serving_app(self.server.app) as url:
            engine = EngineSettings.model_validate(
                {"kind": "vllm", "model": str(self.mind.directory), "vllm": {"url": url, "logprobs": "raw"}}
            )
            self.engine = VllmEngine(engine, SamplerLimits())
            settings = PolicySettings(gate=GateSettings.model_validate(GATE))
            self.registry = PolicyRegistry(self.engine, settings, Traffic(5))
            try:
                await self.registry.start(await self.engine.start(), "base")
                first = adapter(self.folder, self.template, self.mind, 1, seed=2 * self.seed)
                self.first = self.mind.load(first)
                await self.publish(first, 1, self.first, self.mind.base)
                self.directory = adapter(self.folder, self.template, self.mind, 2, seed=2 * self.seed + 1, parent=1)
                self.second = self.mind.load(self.directory)
                if fault is not None:
                    fault(self)
                await self.publish(self.directory, 2, self.second, self.first)
            finally:
                await self.engine.stop()

    async def publish(self, directory: Path, version: int, model: Any, previous: Any) -> None:
        """As a trainer does."""
        sent = probes(
            self.mind, model, previous=previous, count=3, image=self.image, prompt=PROMPT, seed=self.seed, noise=NOISE
        )
        await self.registry.stage(str(directory), version, questions(sent))
        await self.registry.activate(version)


def wrong_prefix(rig: Rig) -> None:
    """Keys that are of no module of the base model; or, every other time, keys that are, and that the server's own
    mapping loses: it loads the adapter, and no module of it is active."""
    if rig.seed % 2:
        rig.server.inert = True
        return
    file = rig.directory / "adapter_model.safetensors"
    wrong = ("model.text_model.", "thinker.", "model.visual.", "transformer.h.")[rig.seed // 2 % 4]
    save_file({n.replace("model.language_model.", wrong): t for n, t in load_file(file).items()}, file)
    seal(rig.directory, rig.mind.directory, 2, "lora", parent_version=1)


def never_named(rig: Rig) -> None:
    """The adapter is loaded, and whatever a request names, the server answers with version 1."""
    rig.server.base, rig.server.unnamed = rig.first, True


def stale_cache(rig: Rig) -> None:
    """Prefixes are found by the prompt alone."""
    rig.server.stale_prefix = True


def old_files(rig: Rig) -> None:
    """Version 1 once more, under the new name."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(rig.folder / policy_dirname(1) / name, rig.directory)
    seal(rig.directory, rig.mind.directory, 2, "lora", parent_version=1)


def half_written(rig: Rig) -> None:
    """No manifest, half a file, or a file too few, in turn."""
    file = rig.directory / "adapter_model.safetensors"
    match rig.seed % 3:
        case 0:
            (rig.directory / "manifest.json").unlink()
        case 1:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case 2:
            file.unlink()


def wrong_base(rig: Rig) -> None:
    """The server holds another base model than the sampler believes, under the same name and version."""
    other = rig.mind.load(rig.mind.directory)
    with torch.no_grad():
        torch.manual_seed(rig.seed)
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    base, rig.mind.base = rig.mind.base, other
    try:
        rig.server.loras = {name: (path, rig.mind.load(Path(path))) for name, (path, _) in rig.server.loras.items()}
        load = rig.mind.load(rig.directory)
    finally:
        rig.mind.base = base
    rig.server.base = other
    rig.server.mind = _Wrapped(rig.mind, load)  # type: ignore[assignment]


class _Wrapped:
    """A mind that loads every adapter onto another base model."""

    def __init__(self, mind: Mind, model: Any) -> None:
        self._mind, self._model = mind, model

    def load(self, path: Path) -> Any:
        return self._model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mind, name)


@pytest.mark.parametrize("seed", VARIATIONS)
def test_what_arrives_is_let_in(mind: Mind, template: Path, tmp_path: Path, seed: int) -> None:
    rig = Rig(mind, template, tmp_path, seed)
    asyncio.run(rig.run(None))
    assert rig.registry.active.version == 2
    arrival = rig.registry.get(2).arrival
    assert arrival is not None
    assert arrival.passed
    assert json.loads((rig.directory / "arrival.json").read_text())["correlation"] == arrival.correlation


@pytest.mark.parametrize("seed", VARIATIONS)
@pytest.mark.parametrize(
    ("fault", "reasons", "seen"),
    [
        (
            wrong_prefix,
            {"WEIGHTS_DO_NOT_FIT", "POLICY_DID_NOT_ARRIVE"},
            "no place for|differ from the trainer|correlation",
        ),
        (never_named, {"POLICY_DID_NOT_ARRIVE"}, "to the last bit"),
        (stale_cache, {"POLICY_DID_NOT_ARRIVE"}, "not sampled from the scored weights"),
        (old_files, {"POLICY_DID_NOT_ARRIVE"}, "to the last bit"),
        (half_written, {"POLICY_HALF_WRITTEN", "POLICY_CHANGED_FILE", "POLICY_MISSING_FILE"}, "manifest"),
        (wrong_base, {"POLICY_DID_NOT_ARRIVE"}, "another base model"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_does_not_arrive_is_caught_and_the_version_before_answers(
    mind: Mind, template: Path, tmp_path: Path, fault: Any, reasons: set[str], seen: str, seed: int
) -> None:
    rig = Rig(mind, template, tmp_path, seed)
    with pytest.raises(SightlineError, match=seen) as error:
        asyncio.run(rig.run(fault))
    assert error.value.reason in reasons
    assert rig.registry.active.version == 1
    assert [policy.version for policy in rig.registry.all()] == [0, 1]
    if error.value.reason == "POLICY_DID_NOT_ARRIVE":
        assert "gap" in error.value.metadata
        assert json.loads((rig.directory / "arrival.json").read_text())["passed"] is False


@pytest.fixture(scope="module")
def in_process(mind: Mind) -> Iterator[SamplerClient]:
    with running(mind.directory) as at, SamplerClient(at.address, timeout=60) as client:
        yield client


def test_the_engine_in_process_is_examined_as_well(
    in_process: SamplerClient, mind: Mind, template: Path, tmp_path: Path
) -> None:
    first, second = (adapter(tmp_path, template, mind, v, seed=v, parent=v - 1) for v in (1, 2))
    models = {0: mind.base, 1: mind.load(first), 2: mind.load(second)}

    def sent(version: int, previous: int) -> list[Probe]:
        return probes(mind, models[version], previous=models[previous], prompt=PROMPT, noise=NOISE)

    client = in_process
    info = client.stage(first, 1, probes=sent(1, 0))
    assert info.arrival is not None
    assert info.arrival.passed
    client.activate(1)
    assert client.policy().arrival == info.arrival

    client.stage(second, 2)
    with pytest.raises(PreconditionFailed, match="did not arrive") as error:
        client.activate(2, probes=sent(1, 0))  # of another update
    assert error.value.reason == "POLICY_DID_NOT_ARRIVE"
    assert client.policy().version == 1
    assert [policy.version for policy in client.policies().policies] == [0, 1]
    client.stage(second, 2)
    client.retire(2)
    client.activate(0)
    client.retire(1)
    client.stage(second, 2)
    with pytest.raises(PreconditionFailed, match="compare it with version 1, which is not loaded"):
        client.activate(2, probes=sent(2, 1))
    client.retire(2)


def test_probes_are_checked_before_anything_is_asked(in_process: SamplerClient, tmp_path: Path) -> None:
    for probe, names in (
        (Probe(None, PROMPT, [], [], []), "has no token_ids"),
        (Probe(None, PROMPT, [5, 6], [-1.0], []), "1 logprobs"),
        (Probe(None, PROMPT, [5, 6], [-1.0, float("nan")], []), "not finite"),
        (Probe(None, PROMPT, [5, 6], [-1.0, -1.0], []), "at least 16"),
    ):
        with pytest.raises(SightlineError, match=names) as error:
            in_process.activate(0, probes=[probe])
        assert error.value.reason == "BAD_PROBES"


def test_a_sampler_may_insist_on_probes(mind: Mind, template: Path, tmp_path: Path) -> None:
    directory = adapter(tmp_path, template, mind, 1, seed=3)
    policies = {"gate": {"required": True}, "state_dir": str(tmp_path / "state")}
    with running(mind.directory, policies=policies) as at, SamplerClient(at.address) as client:
        client.stage(directory, 1)
        with pytest.raises(PreconditionFailed, match="came without probes"):
            client.activate(1)
        client.activate(1, probes=probes(mind, mind.load(directory), prompt=PROMPT))
    with running(mind.directory, policies=policies) as at, SamplerClient(at.address) as client:
        assert client.policy().version == 1  # proven before the restart
