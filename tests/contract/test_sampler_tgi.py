"""The engine `tgi` against a server that speaks as TGI does, with a real small LLaVA behind it; or, where
SIGHTLINE_TEST_TGI_URL names one, against a real TGI (and SIGHTLINE_TEST_TGI_MODEL its model's directory)."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from engine_mind import Mind
from engine_server import serving_app
from engine_trainer import IMAGE, IMAGES, MESSAGES, PROMPT, probes, rendered, truth
from running import WEIGHTS
from sampler_models import Running, make_adapter, make_full, png, running
from sightline import InvalidInput, Overloaded, PreconditionFailed, Unavailable
from sightline.patience import ONCE
from sightline.sampler import SamplerClient, at_least, exact
from sightline_sampler.engine_settings import KubernetesSettings
from sightline_sampler.engines.remote.restart import roll_out
from tgi_server import PAYLOAD_LIMIT, TgiServer

BASE = WEIGHTS / "llava"


@pytest.fixture(scope="module")
def mind() -> Mind:
    return Mind(BASE)


def section(url: str, **more: Any) -> dict[str, Any]:
    restart = (
        f"import urllib.request as u; u.urlopen(u.Request('{url}/test/restart?model_id={{directory}}', method='POST'))"
    )
    values = {"url": url, "restart_command": [sys.executable, "-S", "-c", restart], "poll_seconds": 0.1, **more}
    return {"kind": "tgi", "tgi": values}


@pytest.fixture(scope="module")
def shared(mind: Mind) -> Iterator[tuple[TgiServer, Running]]:
    server = TgiServer(mind, str(BASE), max_best_of=4, max_concurrent_requests=4)
    with serving_app(server.app) as url:
        engine = section(url, max_concurrent=3, overload_seconds=2, best_of_above_bytes=100_000)
        with running(BASE, engine=engine) as at:
            yield server, at


@pytest.fixture
def server(shared: tuple[TgiServer, Running]) -> TgiServer:
    server = shared[0]
    server.requests.clear()
    server.fail.clear()
    server.most_at_once, server.seconds = 0, 0.0
    return server


@pytest.fixture
def once(shared: tuple[TgiServer, Running]) -> Iterator[SamplerClient]:
    with SamplerClient(shared[1].address, timeout=280, patience=ONCE) as client:
        yield client


@pytest.fixture
def client(shared: tuple[TgiServer, Running]) -> Iterator[SamplerClient]:
    with SamplerClient(shared[1].address, timeout=280) as client:
        yield client


def test_candidates_are_what_tgi_sampled(server: TgiServer, client: SamplerClient, mind: Mind) -> None:
    samples = client.sample(IMAGE, PROMPT, 4, seed=7, max_tokens=10)
    assert len({c.seed for c in samples.candidates}) == 4
    assert samples.engine == "tgi 3.3.6-dev0"
    assert samples.prompt_tokens == 18
    for c in samples.candidates:
        np.testing.assert_allclose(c.logprobs, truth(mind, c.token_ids.tolist()), atol=5e-3)  # half precision
        assert c.behaviour_logprobs is not None
        np.testing.assert_array_equal(c.behaviour_logprobs, c.logprobs)
        assert c.finish_reason == ("eos" if c.token_ids[-1] == mind.eos else "length")
        assert "</s>" not in c.text
        again = client.sample(IMAGE, PROMPT, 1, seeds=[c.seed], max_tokens=10).candidates[0]
        assert again.token_ids.tolist() == c.token_ids.tolist()
    for body in server.requests:
        assert body["inputs"].startswith("USER: ![](data:image/png;base64,")
        assert body["inputs"].endswith(f"\n{PROMPT} ASSISTANT:")
        assert body["parameters"].keys() == {"details", "do_sample", "max_new_tokens", "return_full_text", "seed"}


def test_scores_are_the_policys(client: SamplerClient, mind: Mind) -> None:
    ids = client.sample(IMAGE, PROMPT, 1, seed=3, max_tokens=10).candidates[0].token_ids.tolist()
    np.testing.assert_allclose(client.score_tokens(IMAGE, PROMPT, ids).logprobs, truth(mind, ids), atol=5e-3)
    for bad in ([7, 4], [7, 10_000]):
        with pytest.raises(InvalidInput, match=r"token_ids\[1\]") as error:
            client.score_tokens(IMAGE, PROMPT, bad)
        assert error.value.reason == "BAD_TOKEN_ID"


def test_several_images_and_turns(server: TgiServer, client: SamplerClient, mind: Mind) -> None:
    samples = client.sample(IMAGES, MESSAGES, 2, seed=7, max_tokens=8)
    inputs = server.requests[0]["inputs"]
    assert inputs.count("![](data:image/png;base64,") == 2
    assert (
        inputs.index("there is a star .") < inputs.index("![](") < inputs.index("a red star .") < inputs.rindex("![](")
    )
    assert samples.rendered_prompt == rendered(mind, MESSAGES)
    for c in samples.candidates:
        ids = c.token_ids.tolist()
        wanted = truth(mind, ids, image=IMAGES, prompt=MESSAGES)
        np.testing.assert_allclose(c.logprobs, wanted, atol=5e-3)
        assert np.abs(wanted - truth(mind, ids, image=IMAGES[::-1], prompt=MESSAGES)).max() > 1e-3
    scored = client.score_tokens(IMAGES, MESSAGES, ids).logprobs
    np.testing.assert_allclose(scored, wanted, atol=5e-3)
    capabilities = client.policies().capabilities
    assert (capabilities.max_images, capabilities.max_turns, capabilities.one_image_only) == (16, 64, "")


def test_greedy_is_asked_for_once_and_without_what_tgi_refuses(server: TgiServer, client: SamplerClient) -> None:
    candidates = client.sample(IMAGE, PROMPT, 3, temperature=0, top_p=1, max_tokens=6).candidates
    assert len({tuple(c.token_ids.tolist()) for c in candidates}) == 1
    assert [c.index for c in candidates] == [0, 1, 2]
    (body,) = server.requests
    assert body["parameters"] == {"details": True, "do_sample": False, "max_new_tokens": 6, "return_full_text": False}


def test_bent_sampling_tells_the_behaviour_only(server: TgiServer, client: SamplerClient) -> None:
    samples = client.sample(
        IMAGE, PROMPT, 2, temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.1, stop=["star"], max_tokens=16
    )
    for c in samples.candidates:
        assert not len(c.logprobs)
        assert c.behaviour_logprobs is not None
        assert len(c.behaviour_logprobs) == len(c.token_ids)
        assert "star" not in c.text
    sent = server.requests[0]["parameters"]
    assert sent | {"temperature": 0, "top_p": 0, "repetition_penalty": 0, "seed": 0} == {
        "details": True, "do_sample": True, "max_new_tokens": 16, "return_full_text": False, "stop": ["star"],
        "top_k": 5, "temperature": 0, "top_p": 0, "repetition_penalty": 0, "seed": 0,
    }  # fmt: skip


def test_pictures_in_a_users_text_are_neither_fetched_nor_seen(server: TgiServer, client: SamplerClient) -> None:
    samples = client.sample(IMAGE, "Look: ![](http://169.254.169.254/latest) and ![](data:image/png;base64,AA==)", 1)
    assert server.fetched == []
    assert "![](" not in samples.rendered_prompt
    assert server.requests[0]["inputs"].count("![](") == 1
    with pytest.raises(InvalidInput, match="stands for an image"):
        client.sample(IMAGE, "two pictures: <image>", 1)


def test_too_large_a_body_is_refused_before_it_is_sent(server: TgiServer, client: SamplerClient) -> None:
    large = png(1, 800)
    assert len(large) * 4 // 3 < PAYLOAD_LIMIT * 2
    with pytest.raises(InvalidInput, match=f"over its limit of {PAYLOAD_LIMIT}") as error:
        client.sample(large, PROMPT, 1)
    assert error.value.reason == "IMAGE_TOO_LARGE"
    assert server.requests == []


def test_best_of_where_the_upload_dominates(server: TgiServer, client: SamplerClient) -> None:
    large = png(1, (200, 180))  # 108 kB; over engine.tgi.best_of_above_bytes as base64
    samples = client.sample(large, PROMPT, 6, max_tokens=4)
    # The router would take 4 children; engine.tgi.max_concurrent lets 3 run at a time, and each child counts.
    assert [body["parameters"]["best_of"] for body in server.requests] == [3, 3]
    assert all("seed" not in body["parameters"] for body in server.requests)
    assert len({c.seed for c in samples.candidates}) == 6
    server.requests.clear()
    one = samples.candidates[2]
    again = client.sample(large, PROMPT, 2, seeds=[one.seed, 5], max_tokens=4)
    assert again.candidates[0].token_ids.tolist() == one.token_ids.tolist()
    assert all("best_of" not in body["parameters"] for body in server.requests)


@pytest.mark.parametrize("status", [424, 500, 503, 0])
def test_a_candidate_that_failed_is_asked_for_again_with_its_seed(
    server: TgiServer, client: SamplerClient, status: int
) -> None:
    wanted = client.sample(IMAGE, PROMPT, 3, seeds=[1, 2, 3], max_tokens=4)
    server.requests.clear()
    server.fail.append(status)
    found = client.sample(IMAGE, PROMPT, 3, seeds=[1, 2, 3], max_tokens=4)
    assert [c.token_ids.tolist() for c in found.candidates] == [c.token_ids.tolist() for c in wanted.candidates]
    seeds = sorted(body["parameters"]["seed"] for body in server.requests)
    assert len(seeds) == 4
    assert set(seeds) == {1, 2, 3}


def test_what_fails_twice_is_told_and_what_came_is_delivered(server: TgiServer, once: SamplerClient) -> None:
    server.fail.extend([424] * 40)
    with pytest.raises(Unavailable, match=r"failed 2 times: .*CUDA out of memory") as error:
        once.sample(IMAGE, PROMPT, 1, max_tokens=4)
    assert error.value.reason == "ENGINE_FAILED"
    assert len(server.requests) == 2


def test_an_overload_is_waited_for_and_then_told(server: TgiServer, client: SamplerClient, once: SamplerClient) -> None:
    server.fail.extend([429] * 3)
    assert len(client.sample(IMAGE, PROMPT, 2, max_tokens=4).candidates) == 2
    server.fail.extend([429] * 200)
    with pytest.raises(Overloaded, match="overloaded") as error:
        once.sample(IMAGE, PROMPT, 1, max_tokens=4)
    assert error.value.retry_after


def test_refusals_are_not_retried(server: TgiServer, client: SamplerClient) -> None:
    with pytest.raises(InvalidInput, match="must be <= 256") as error:
        client.sample(IMAGE, "picture " * 120, 1, max_tokens=200)
    assert error.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(InvalidInput, match=r"engine tgi .* does not support min_p") as unsupported:
        client.sample(IMAGE, PROMPT, 1, min_p=0.1)
    assert unsupported.value.metadata["engine"] == "tgi 3.3.6-dev0"
    assert unsupported.value.metadata["parameters"] == "min_p"
    with pytest.raises(InvalidInput, match="this TGI takes 4"):
        client.sample(IMAGE, PROMPT, 1, stop=list("abcde"))
    assert len(server.requests) == 1


def test_no_more_requests_at_once_than_the_replica_takes(server: TgiServer, client: SamplerClient) -> None:
    server.seconds = 0.02
    assert len(client.sample(IMAGE, PROMPT, 12, max_tokens=2).candidates) == 12
    assert server.most_at_once == 3


def test_capabilities_say_what_tgi_can(client: SamplerClient) -> None:
    can = client.policies().capabilities
    assert (can.logprobs, can.lora, can.full, can.multi_version, can.native_k) == (
        "behaviour", "none", "restart", False, False,
    )  # fmt: skip
    assert can.params == {"top_k", "repetition_penalty", "stop"}
    assert can.max_image_bytes < PAYLOAD_LIMIT * 3 // 4


def test_a_template_that_writes_the_begin_token_gets_no_second_one(mind: Mind, tmp_path: Path) -> None:
    model = tmp_path / "llava"
    shutil.copytree(BASE, model)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ bos_token }}" + template)
    server = TgiServer(mind, str(model))
    with (
        serving_app(server.app) as url,
        running(model, engine=section(url)) as at,
        SamplerClient(at.address) as client,
    ):
        samples = client.sample(IMAGE, PROMPT, 1, max_tokens=2)
    assert samples.rendered_prompt.startswith("<s>USER")
    assert samples.prompt_tokens == 18
    assert server.double_bos == 0


def test_policies_are_checkpoints_and_info_proves_them(mind: Mind, tmp_path: Path) -> None:
    make_full(tmp_path, BASE, 2, noise=0.01, kind="merged")
    adapter = make_adapter(tmp_path, BASE, 1)
    server = TgiServer(mind, str(BASE))
    state = {"state_dir": str(tmp_path / "state")}
    with serving_app(server.app) as url:
        with running(BASE, engine=section(url), policies=state) as at, SamplerClient(at.address) as client:
            with pytest.raises(PreconditionFailed, match="publish the policy merged") as refused:
                client.stage(adapter, 1)
            assert refused.value.reason == "POLICY_KIND_UNSUPPORTED"
            sent = probes(mind, mind.load(tmp_path / "v000002"))
            staged = client.stage(tmp_path / "v000002", 2, probes=sent)
            assert staged.changed_modules > 50
            with pytest.raises(PreconditionFailed, match="holds one version at a time"):
                client.sample(IMAGE, PROMPT, 1, policy=exact(2))
            assert client.sample(IMAGE, PROMPT, 1, max_tokens=2).policy_version == 0

            active = client.activate(2)
            assert active.arrival is not None
            assert active.arrival.passed
            assert active.arrival.correlation is not None
            assert active.arrival.correlation > 0.9
            assert server.model_id == str(tmp_path / "v000002")
            report = json.loads((tmp_path / "v000002/arrival.json").read_text())
            assert report["passed"] is True
            assert report["policy_version"] == 2
            samples = client.sample(IMAGE, PROMPT, 2, policy=at_least(1), max_tokens=6)
            assert samples.policy_version == 2
            for c in samples.candidates:
                np.testing.assert_allclose(c.logprobs, truth(mind, c.token_ids.tolist(), server.model), atol=5e-3)
            with pytest.raises(PreconditionFailed, match="active is 2"):
                client.sample(IMAGE, PROMPT, 1, policy=exact(0))
        with running(BASE, engine=section(url), policies=state) as at, SamplerClient(at.address) as client:
            restarted = client.policy()
            assert (restarted.version, restarted.state) == (2, "active")
            client.activate(0)
            assert server.model_id == str(BASE)


def test_an_adapter_is_merged_where_there_is_a_place_for_it(mind: Mind, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "policies", BASE, 1, scale=0.05)
    server = TgiServer(mind, str(BASE))
    engine = lambda url: section(url, merge_into=str(tmp_path / "merged"))  # noqa: E731
    with serving_app(server.app) as url, running(BASE, engine=engine(url)) as at, SamplerClient(at.address) as client:
        assert client.policies().capabilities.lora == "restart", "or a trainer would not begin"
        client.stage(adapter, 1)
        active = client.activate(1, probes=probes(mind, mind.load(adapter)))
        assert active.arrival is not None
        assert active.arrival.gap < 2e-3  # TGI's half precision
        (merged,) = (tmp_path / "merged").iterdir()
        assert server.model_id == str(merged)
        ids = client.sample(IMAGE, PROMPT, 1, seed=1, max_tokens=8).candidates[0].token_ids.tolist()
        np.testing.assert_allclose(truth(mind, ids, server.model), truth(mind, ids, mind.load(adapter)), atol=1e-5)
        client.activate(0)
        client.retire(1)
        assert list((tmp_path / "merged").iterdir()) == []


def test_tgi_that_names_the_new_model_and_holds_the_old_weights_is_caught(mind: Mind, tmp_path: Path) -> None:
    make_full(tmp_path, BASE, 1, noise=0.01, kind="merged")
    server = TgiServer(mind, str(BASE))
    server.stale = True
    with (
        serving_app(server.app) as url,
        running(BASE, engine=section(url)) as at,
        SamplerClient(at.address) as client,
    ):
        client.stage(tmp_path / "v000001", 1)
        with pytest.raises(PreconditionFailed, match="to the last bit") as error:
            client.activate(1, probes=probes(mind, mind.load(tmp_path / "v000001")))
        assert error.value.reason == "POLICY_DID_NOT_ARRIVE"
        assert server.model_id == str(BASE)
        assert [p.version for p in client.policies().policies] == [0]
        assert client.sample(IMAGE, PROMPT, 1, max_tokens=2).policy_version == 0


def test_a_tgi_with_another_model_is_not_used(mind: Mind, tmp_path: Path) -> None:
    server = TgiServer(mind, "/models/another")
    engine = {"kind": "tgi", "tgi": {"poll_seconds": 0.1, "overload_seconds": 0.2}}
    make_full(tmp_path, BASE, 1, noise=0.01, kind="merged")
    with serving_app(server.app) as url:
        engine["tgi"]["url"] = url  # type: ignore[index]
        with (
            running(BASE, engine=engine) as at,
            SamplerClient(at.address) as client,
            SamplerClient(at.address, patience=ONCE) as once,
        ):
            assert "serves '/models/another'" in at.service.engine.ready()  # type: ignore[attr-defined]
            with pytest.raises(Unavailable, match=r"unhealthy|serves '/models/another'"):
                once.sample(IMAGE, PROMPT, 1)
            assert client.policies().active.version == 0  # other calls are answered
            server.model_id = str(BASE)
            while at.service.engine.ready():  # type: ignore[attr-defined]
                pass
            client.sample(IMAGE, PROMPT, 1, max_tokens=2)
            client.stage(tmp_path / "v000001", 1)
            with pytest.raises(PreconditionFailed, match=r"engine\.tgi\.restart_command") as error:
                client.activate(1)
            assert error.value.reason == "NO_RESTART_HOOK"


def test_a_restart_may_take_longer_than_a_call(mind: Mind, tmp_path: Path) -> None:
    make_full(tmp_path, BASE, 1, noise=0.01, kind="merged")
    server = TgiServer(mind, str(BASE))
    with serving_app(server.app) as url:
        engine = section(url)
        engine["tgi"]["restart_command"][-1] = engine["tgi"]["restart_command"][-1].replace(
            "{directory}", "{directory}&seconds=4"
        )
        with running(BASE, engine=engine) as at, SamplerClient(at.address, timeout=2) as client:
            client.stage(tmp_path / "v000001", 1)
            assert client.activate(1).version == 1
            assert server.model_id == str(tmp_path / "v000001")


def test_what_another_model_sampled_between_two_looks_is_thrown_away(mind: Mind) -> None:
    server = TgiServer(mind, str(BASE))
    with (
        serving_app(server.app) as url,
        running(BASE, engine=section(url, poll_seconds=600)) as at,
        SamplerClient(at.address, patience=ONCE) as client,
    ):
        assert len(client.sample(IMAGE, PROMPT, 2, max_tokens=2).candidates) == 2
        server.model_id = "/models/another"  # somebody restarted it between two looks
        with pytest.raises(Unavailable, match="serves '/models/another'") as error:
            client.sample(IMAGE, PROMPT, 2, max_tokens=2)
        assert error.value.reason == "ENGINE_HOLDS_ANOTHER_POLICY"
        assert at.service.engine.ready() is not None


def test_a_rollout_patches_the_deployment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0k3n\n")
    (tmp_path / "namespace").write_text("ml\n")
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200 if len(seen) == 1 else 403, json={"message": "forbidden"})

    settings = KubernetesSettings(deployment="tgi", container="router", account=tmp_path, api="https://k8s")

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            await roll_out(client, settings, "/policies/v000007")
            with pytest.raises(PreconditionFailed, match="needs `patch`"):
                await roll_out(client, settings, "/policies/v000008")

    asyncio.run(run())
    assert str(seen[0].url) == "https://k8s/apis/apps/v1/namespaces/ml/deployments/tgi"
    assert seen[0].method == "PATCH"
    assert seen[0].headers["authorization"] == "Bearer t0k3n"
    assert seen[0].headers["content-type"] == "application/strategic-merge-patch+json"
    spec = json.loads(seen[0].content)["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert container == {"name": "router", "env": [{"name": "MODEL_ID", "value": "/policies/v000007"}]}
    assert spec["strategy"] == {"$retainKeys": ["type"], "type": "Recreate"}  # never two models behind one address


def test_the_service_needs_no_pytorch_for_an_engine_elsewhere() -> None:
    script = """
import sys
from sightline_sampler.service import SamplerService
from sightline_sampler.settings import SamplerSettings
for kind in ("tgi", "vllm"):
    SamplerService(SamplerSettings.model_validate({"engine": {"kind": kind, "model": "x"}}))
print(sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif("SIGHTLINE_TEST_TGI_URL" not in os.environ, reason="SIGHTLINE_TEST_TGI_URL names no TGI")
def test_against_a_real_tgi() -> None:
    url, model = os.environ["SIGHTLINE_TEST_TGI_URL"], Path(os.environ["SIGHTLINE_TEST_TGI_MODEL"])
    model_id = httpx.get(f"{url}/info").json()["model_id"]
    engine = {"kind": "tgi", "tgi": {"url": url, "model_id": model_id}}
    with running(model, engine=engine) as at, SamplerClient(at.address, timeout=300) as client:
        samples = client.sample(IMAGE, PROMPT, 4, seed=7, max_tokens=16)
        assert len({c.seed for c in samples.candidates}) == 4
        for c in samples.candidates:
            assert len(c.logprobs) == len(c.token_ids)
            again = client.sample(IMAGE, PROMPT, 1, seeds=[c.seed], max_tokens=16).candidates[0]
            assert again.token_ids[:4].tolist() == c.token_ids[:4].tolist()
        if client.policies().capabilities.scores:
            c = samples.candidates[0]
            scored = client.score_tokens(IMAGE, PROMPT, c.token_ids).logprobs
            assert float(np.abs(scored - c.logprobs).mean()) < 0.1
