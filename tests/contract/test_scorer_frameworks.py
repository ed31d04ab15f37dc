"""The rewards for verl and OpenRLHF, called by those libraries' own code.

Neither installs beside this project's versions of torch and transformers, so their wheels are fetched without their
dependencies and the modules that call reward functions run alone. Needs a package registry.
"""

import ast
import asyncio
import functools
import importlib.util
import json
import logging
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from scorer_scripted import Scripted, scripted

pytestmark = pytest.mark.slow

VERSIONS = {"verl": "0.9.1", "openrlhf": "0.11.2"}
PICTURE = b"picture" * 1000


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, unpacked."""
    directory = tmp_path_factory.mktemp("wheels")
    wanted = [f"{name}=={version}" for name, version in VERSIONS.items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the registry does not give {wanted}: {done.stderr[-200:]}")
    for wheel in directory.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(directory)
    return directory


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


def definitions(path: Path, *names: str) -> str:
    """The source of some functions and classes of a module, without decorators."""
    source = path.read_text()
    found = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
    assert [node.name for node in found] == list(names)  # type: ignore[attr-defined]
    return "\n\n".join(str(ast.get_source_segment(source, node)) for node in found)


def module_of(path: Path) -> Any:
    """Load a module from its file alone."""
    spec = importlib.util.spec_from_file_location(f"alone_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verls_reward_manager_gets_its_scores(wheels: Path, there: tuple[Scripted, str], name: str) -> None:
    """`NaiveRewardManager.run_single` calls the function through `get_custom_reward_fn`'s wrappers."""
    import torch

    world: dict[str, Any] = {"inspect": __import__("inspect"), "DataProto": object, "default_compute_score": None}

    class RewardManagerBase:
        def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
            self.tokenizer, self.loop = tokenizer, asyncio.get_event_loop()

    world["RewardManagerBase"] = RewardManagerBase
    exec(definitions(wheels / "verl/trainer/ppo/reward.py", "_call_with_kwargs", "_call_with_kwargs_async"), world)
    exec(definitions(wheels / "verl/experimental/reward_loop/reward_manager/naive.py", "NaiveRewardManager"), world)
    from sightline.integrations import verl

    function = getattr(verl, name)
    configured = {"target": there[1], "on_failure": "drop"}
    wrap = world["_call_with_kwargs_async" if name.endswith("async") else "_call_with_kwargs"]
    wrapped = functools.partial(wrap, function, configured)

    class Data(list[Any]):
        def __getitem__(self, key: Any) -> Any:
            return Data(super().__getitem__(key)) if isinstance(key, slice) else super().__getitem__(key)

    def row(extra_info: dict[str, Any]) -> Data:
        batch = {"responses": torch.tensor([1, 2, 0]), "attention_mask": torch.tensor([1, 1, 1, 1, 0])}
        fields = {"data_source": "coco", "reward_model": {"ground_truth": ""}, "extra_info": extra_info}
        return Data([SimpleNamespace(batch=batch, non_tensor_batch=fields)])

    async def run(text: str, extra_info: dict[str, Any]) -> dict[str, Any]:
        tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: text if ids.tolist() == [1, 2] else "?")
        manager = world["NaiveRewardManager"](None, tokenizer, wrapped, "10.0.0.1:8000", None)
        assert manager.is_async_reward_score == name.endswith("async")
        found: dict[str, Any] = await manager.run_single(row(extra_info))
        return found

    found = asyncio.run(run("ok 3", {"image": PICTURE}))
    assert found == {"reward_score": 3, "reward_extra_info": {"score": 3, "scored": 1, "cosine": 0}}
    failed = asyncio.run(run("refuse", {"image": PICTURE}))
    assert math.isnan(failed["reward_score"])
    assert failed["reward_extra_info"]["scored"] == 0


def test_verl_loads_the_function_by_its_path(wheels: Path) -> None:
    from sightline.integrations import verl

    load = module_of(wheels / "verl/utils/import_utils.py").load_extern_object
    assert load("pkg://sightline.integrations.verl", "compute_score") is verl.compute_score


@pytest.fixture
def openrlhf(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules that fetch rewards and turn them into experiences, loaded as in its own tests."""
    (root,) = [path.parent for path in wheels.rglob("openrlhf/utils") if path.is_dir()]
    logger = SimpleNamespace(init_logger=logging.getLogger)
    monkeypatch.setitem(sys.modules, "openrlhf.utils.logging_utils", logger)
    for name in ("openrlhf.trainer.ray.vllm_engine", "ray", "vllm"):
        monkeypatch.setitem(sys.modules, name, MagicMock())

    class Experience(SimpleNamespace):
        pass

    monkeypatch.setitem(sys.modules, "openrlhf.trainer.ppo_utils.experience", SimpleNamespace(Experience=Experience))
    found = {}
    for name in ("utils/agent.py", "trainer/ppo_utils/samples_generator.py"):
        found[Path(name).stem] = module_of(root / name)
    return SimpleNamespace(**found)


def test_openrlhfs_executor_and_experiences_take_our_rewards(
    openrlhf: SimpleNamespace, there: tuple[Scripted, str], tmp_path: Path
) -> None:
    """OpenRLHF's code sends query, prompt and label to /get_reward and turns the answer into an Experience."""
    import base64

    from scorer_gateways import Gateway

    label = json.dumps({"image": f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"})
    gateway = Gateway(tmp_path, there[1], "openrlhf.on_failure=drop")
    executor = openrlhf.agent.SingleTurnAgentExecutor(f"{gateway.http.base_url}/get_reward")
    params = SimpleNamespace(max_tokens=8, logprobs=None)

    class Tokenizer:
        def __call__(self, **_: Any) -> Any:
            import torch

            return {"input_ids": torch.tensor([[1, 2, 3]])}

        def __init__(self, response: str) -> None:
            self.response = response

        def decode(self, ids: Any, skip_special_tokens: bool) -> str:
            return f"USER: say ASSISTANT:{self.response}</s>"

    class Engine:
        async def generate(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=[4, 5], finish_reason="stop", logprobs=None)])

    async def rollout(response: str) -> dict[str, Any]:
        found: dict[str, Any] = await executor.execute(
            "USER: say ASSISTANT:", label, params, 64, Tokenizer(response), Engine()
        )
        return found

    try:
        scored, failed = asyncio.run(rollout("ok 4")), asyncio.run(rollout("refuse"))
    finally:
        gateway.stop()
    assert scored["reward"] == scored["scores"] == [4]
    assert scored["extra_logs"] == {"scored": [1]}
    assert math.isnan(failed["reward"][0])
    assert failed["extra_logs"] == {"scored": [0]}
    generator = openrlhf.samples_generator
    process = generator.SamplesGenerator._process_response_into_experience
    make = functools.partial(process, SimpleNamespace(), max_len=64)
    good, bad = make(scored), make(failed)
    assert good.scores[0].item() == 4
    # Dynamic filtering keeps a group if its mean score is in range, which NaN never is.
    mean = (good.scores[0].item() + bad.scores[0].item()) / 2
    assert not (0 < mean < 100)
