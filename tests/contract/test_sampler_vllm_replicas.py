"""One sampler before three servers with vLLM's protocol: policies are loaded and proved on each, whichever fails."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_mind import Mind
from engine_server import serving_app
from engine_trainer import PROMPT, probes, truth
from running import WEIGHTS
from sampler_models import Running, make_adapter, png, running
from sightline import PreconditionFailed
from sightline.sampler import SamplerClient, exact
from sightline_sampler.engine_settings import VllmSettings
from sightline_sampler.engines.remote.vllm_replicas import VllmReplicas
from vllm_server import VllmServer

BASE = WEIGHTS / "llava"
CAPTION = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture(scope="module")
def mind() -> Mind:
    return Mind(BASE)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("policies")
    make_adapter(root, BASE, 1, scale=0.05, targets=CAPTION)
    make_adapter(root, BASE, 2, scale=0.05, targets=CAPTION, parent_version=1)
    return root


class Fleet:
    """Three servers, the sampler before them, and a client of it."""

    def __init__(self, servers: list[VllmServer], at: Running, client: SamplerClient) -> None:
        self.servers, self.at, self.client = servers, at, client

    @property
    def engine(self) -> VllmReplicas:
        engine = self.at.service.engine
        assert isinstance(engine, VllmReplicas)
        return engine

    def left_out(self) -> dict[str, str]:
        return {one.engine.called: one.why() for one in self.engine._replicas if not one.answers()}

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.left_out()
            time.sleep(0.05)

    def publish(self, policies: Path, mind: Mind, version: int) -> None:
        new, old = (mind.load(policies / f"v{one:06d}") if one else None for one in (version, version - 1))
        self.client.stage(policies / f"v{version:06d}", version)
        self.client.activate(version, probes=probes(mind, new, previous=old))


@pytest.fixture
def fleet(mind: Mind) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        servers = [VllmServer(mind, dev_mode=True) for _ in range(3)]
        urls = [stack.enter_context(serving_app(server.app)) for server in servers]
        vllm = {"replicas": urls, "poll_seconds": 0.1, "overload_seconds": 10, "dev_mode": True, "sleep": True}
        at = stack.enter_context(
            running(BASE, engine={"kind": "vllm", "vllm": vllm}, policies={"gate": {"required": True}})
        )
        yield Fleet(servers, at, stack.enter_context(SamplerClient(at.address, timeout=120)))


def test_an_images_requests_go_to_one_and_images_are_spread(fleet: Fleet) -> None:
    went: list[int] = []
    for number in range(12):
        before = [len(server.requests) for server in fleet.servers]
        for _ in range(2):
            fleet.client.sample(png(number), PROMPT, 2, max_tokens=2)
        asked = [len(server.requests) - had for server, had in zip(fleet.servers, before, strict=True)]
        assert sorted(asked) == [0, 0, 2]
        went.append(asked.index(2))
    assert set(went) == {0, 1, 2}


@pytest.mark.slow
def test_each_takes_and_proves_a_policy_and_one_that_does_not_is_left_out_until_it_does(
    fleet: Fleet, mind: Mind, policies: Path
) -> None:
    fleet.publish(policies, mind, 1)
    assert [len(server.loras) for server in fleet.servers] == [1, 1, 1]
    for server in fleet.servers:
        (name,) = server.loras
        assert any(body["model"] == name and "prompt_logprobs" in body for body in server.requests), "each is asked"

    fleet.servers[1].inert = True  # it answers 200 as the base model
    fleet.publish(policies, mind, 2)
    assert list(fleet.left_out()) == ["vllm-1"]
    assert "a policy did not arrive" in fleet.left_out()["vllm-1"]
    assert fleet.client.policy().arrival.passed  # type: ignore[union-attr]
    time.sleep(1)  # it is tried again, still without success
    assert list(fleet.left_out()) == ["vllm-1"]
    second = mind.load(policies / "v000002")
    for number in range(6):
        for one in fleet.client.sample(png(number), PROMPT, 2, max_tokens=4).candidates:
            wanted = truth(mind, one.token_ids.tolist(), second, image=png(number))
            np.testing.assert_allclose(one.logprobs, wanted, atol=1e-4)

    fleet.servers[1].inert = False
    fleet.until(lambda: not fleet.left_out())
    assert sorted(fleet.servers[1].loras) == sorted(fleet.servers[0].loras)


def test_a_policy_that_arrives_at_none_is_rejected(fleet: Fleet, mind: Mind, policies: Path) -> None:
    for server in fleet.servers[:2]:
        server.inert = True
    with pytest.raises(PreconditionFailed, match="did not arrive") as caught:
        fleet.publish(policies, mind, 1)
    assert caught.value.reason == "POLICY_DID_NOT_ARRIVE"
    assert fleet.client.policy().version == 0
    assert fleet.client.sample(png(0), PROMPT, 1, max_tokens=2).policy_version == 0


def test_a_replica_that_dies_loses_and_doubles_nothing(fleet: Fleet, mind: Mind, policies: Path) -> None:
    fleet.publish(policies, mind, 1)
    wanted = [fleet.client.sample(png(number), PROMPT, 4, seed=number, max_tokens=4) for number in range(6)]
    fleet.servers[2].fail.extend(["break"] * 3 + [503] * 60)  # it breaks off in the middle and is then away
    for number, whole in enumerate(wanted):
        again = fleet.client.sample(png(number), PROMPT, 4, seed=number, max_tokens=4)
        assert again.policy_version == 1
        ours, theirs = again.candidates, whole.candidates
        assert [(one.index, one.seed, one.token_ids.tolist()) for one in ours] == [
            (one.index, one.seed, one.token_ids.tolist()) for one in theirs
        ]


@pytest.mark.slow
def test_one_that_was_restarted_proves_its_policies_before_it_answers(fleet: Fleet, mind: Mind, policies: Path) -> None:
    fleet.publish(policies, mind, 1)
    server = fleet.servers[0]
    server.inert = True
    server.loras.clear()  # as a restart does
    fleet.until(lambda: "vllm-0" in fleet.left_out())
    time.sleep(0.5)
    assert "vllm-0" in fleet.left_out()
    server.inert = False
    fleet.until(lambda: not fleet.left_out())
    ids = fleet.client.sample(png(0), PROMPT, 1, max_tokens=6).candidates[0].token_ids.tolist()
    assert (
        fleet.client.score_tokens(png(0), PROMPT, ids).logprobs.tolist()
        != fleet.client.score_tokens(png(0), PROMPT, ids, policy=exact(0)).logprobs.tolist()
    )


def test_all_rest_and_wake_up(fleet: Fleet, mind: Mind, policies: Path) -> None:
    fleet.publish(policies, mind, 1)
    fleet.client.pause(release=True)
    assert all(server.asleep for server in fleet.servers)
    fleet.client.resume()
    assert not any(server.asleep for server in fleet.servers)
    assert fleet.client.sample(png(0), PROMPT, 1, max_tokens=2).policy_version == 1


@pytest.mark.slow
def test_one_that_comes_later_is_given_what_it_lacks(mind: Mind, policies: Path) -> None:
    late = VllmServer(mind)
    door = threading.Event()

    async def app(scope: object, receive: object, send: object) -> None:
        if not door.is_set():
            await asyncio.sleep(0.01)
            raise ConnectionError
        await late.app(scope, receive, send)  # type: ignore[arg-type]

    with contextlib.ExitStack() as stack:
        servers = [VllmServer(mind), late]
        urls = [stack.enter_context(serving_app(one)) for one in (servers[0].app, app)]
        vllm = {"replicas": urls, "poll_seconds": 0.1, "swap_seconds": 1}
        at = stack.enter_context(running(BASE, engine={"kind": "vllm", "vllm": vllm}))
        fleet = Fleet(servers, at, stack.enter_context(SamplerClient(at.address, timeout=120)))
        assert list(fleet.left_out()) == ["vllm-1"]
        fleet.publish(policies, mind, 1)
        door.set()
        fleet.until(lambda: not fleet.left_out())
        assert list(late.loras) == list(servers[0].loras)


@pytest.mark.parametrize(("replicas", "why"), [(["vllm:8000"], "http"), (["http://a:1", "http://a:1"], "twice")])
def test_addresses_are_read_or_refused(replicas: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        VllmSettings.model_validate({"replicas": replicas})
