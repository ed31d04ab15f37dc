"""Loops of three iterations through TGI and vLLM, as servers that speak like them, and through a real vLLM where
SIGHTLINE_TEST_VLLM_URL names one that serves the playground's LLaVA: what each update made is put in, proved by
log-probs, and samples the next iteration."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from engine_mind import Mind
from engine_server import serving_app
from running import WEIGHTS, Services, small_recipe
from sampler_models import running
from sightline.errors import InvalidInput
from sightline.sampler import PolicyInfo, SamplerClient
from sightline_trainer.execute import execute
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory
from tgi_server import TgiServer
from vllm_server import VllmServer

pytestmark = pytest.mark.slow

BASE = WEIGHTS / "llava"


@contextlib.contextmanager
def sampler(engine: dict[str, Any], root: Path) -> Iterator[str]:
    """A sampler before an engine; no policy answers without proof."""
    root.mkdir()
    policies = {"root": str(root), "state_dir": str(root / ".sampler"), "gate": {"required": True}}
    with running(BASE, engine=engine, policies=policies) as at:
        yield at.address


def three_iterations(services: Services, playground: Path, run: Path, address: str, **sections: Any) -> RunDirectory:
    tree = small_recipe(services, playground, iterations=3)
    tree["evaluation"] = {"prompts": 4, "greedy_prompts": 2, "questions": 4, "diverse_prompts": 2}
    tree["sampling"] = {**tree["sampling"], "address": address, "max_tokens": 24, **sections.pop("sampling", {})}
    directory = RunDirectory(run)
    table = execute(Recipe.model_validate({**tree, **sections}), directory, lambda event: None)
    assert [row["policy_version"] for row in table] == [0, 1, 2, 3]
    for iteration in (1, 2, 3):
        sampled = pq.read_table(directory.iteration(iteration) / "candidates")["policy_version"].to_pylist()
        assert set(sampled) == {iteration - 1}, "each iteration's candidates come from the policy before it"
    return directory


def arrived(address: str) -> list[PolicyInfo]:
    """The sampler's policies; each must have been proved."""
    with SamplerClient(address, timeout=60) as client:
        known = client.policies()
    assert (known.active.version, known.active.state) == (3, "active")
    for policy in known.policies[1:]:
        assert policy.arrival is not None
        assert policy.arrival.passed
        assert policy.arrival.correlation is not None
        assert policy.arrival.correlation > 0.9
    return list(known.policies)


def test_tgi_merges_restarts_proves_and_samples_the_next(services: Services, playground: Path, tmp_path: Path) -> None:
    server = TgiServer(Mind(BASE), str(BASE))
    held: list[str] = []
    restarted = server.restart

    async def restart(request: Any) -> Any:
        held.append(request.query_params["model_id"])
        return await restarted(request)

    server.app.routes[:] = [route for route in server.app.routes if getattr(route, "path", "") != "/test/restart"]
    server.app.add_route("/test/restart", restart, methods=["POST"])
    with serving_app(server.app) as url:
        post = f"u.Request('{url}/test/restart?model_id={{directory}}', method='POST')"
        root = tmp_path / "policies"
        tgi = {
            "url": url, "poll_seconds": 0.1, "merge_into": str(root / "merged"),
            "restart_command": [sys.executable, "-S", "-c", f"import urllib.request as u; u.urlopen({post})"],
        }  # fmt: skip
        with sampler({"kind": "tgi", "tgi": tgi}, root) as address:
            gap = {"batch_size": 8, "learning_rate": 5e-4, "max_sampled_gap": 0.05}  # TGI's are of half precision
            three_iterations(services, playground, tmp_path / "run", address, dpo=gap)
            arrived(address)
            with (
                SamplerClient(address, timeout=60) as client,
                pytest.raises(InvalidInput, match="memory"),
            ):
                client.pause(release=True)
    assert [Path(path).name[:7] for path in held] == ["v000001", "v000002", "v000003"]
    assert all(Path(path).is_relative_to(root / "merged") for path in held)
    assert server.model_id == held[-1]


def test_vllm_takes_adapters_and_sleeps_while_the_update_trains(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    server = VllmServer(Mind(BASE), dev_mode=True)
    with serving_app(server.app) as url:
        vllm = {"url": url, "poll_seconds": 0.1, "sleep": True}
        with sampler({"kind": "vllm", "vllm": vllm}, tmp_path / "policies") as address:
            dpo = {"batch_size": 8, "learning_rate": 5e-4}
            rests = {"rests": True}
            three_iterations(services, playground, tmp_path / "run", address, dpo=dpo, sampling=rests)
            names = [f"v{policy.version}-{policy.digest[:12]}" for policy in arrived(address)[1:]]
    calls = [call.partition("?")[0] for call in server.calls]
    assert calls.count("/sleep") >= 3
    assert not server.asleep
    assert set(server.loras) == set(names)
    assert "/collective_rpc" not in calls, "no weights had to be loaded again"
    assert {request["model"] for request in server.requests} >= {*names, server.name}


@pytest.mark.skipif("SIGHTLINE_TEST_VLLM_URL" not in os.environ, reason="SIGHTLINE_TEST_VLLM_URL names no vLLM")
def test_a_real_vllm_takes_each_adapter(services: Services, playground: Path, tmp_path: Path) -> None:
    told = json.loads(os.environ.get("SIGHTLINE_TEST_VLLM_SETTINGS", "{}"))
    engine = {"kind": "vllm", "vllm": {**told, "url": os.environ["SIGHTLINE_TEST_VLLM_URL"]}}
    with sampler(engine, tmp_path / "policies") as address:
        dpo = {"batch_size": 8, "learning_rate": 5e-4}
        three_iterations(services, playground, tmp_path / "run", address, dpo=dpo)
        for policy in arrived(address):
            print(policy)
