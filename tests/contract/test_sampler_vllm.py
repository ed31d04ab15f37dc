"""The engine `vllm` against a server that speaks as vLLM does, with a real small LLaVA behind it; or, where
SIGHTLINE_TEST_VLLM_URL names one, against a real vLLM (and SIGHTLINE_TEST_VLLM_MODEL its model's directory)."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_mind import Mind
from engine_server import serving_app
from engine_trainer import IMAGE, IMAGES, MESSAGES, PROMPT, probes, rendered, truth
from running import WEIGHTS
from sampler_models import Running, make_adapter, make_full, running
from sightline import InternalError, InvalidInput, PreconditionFailed, SightlineError, Unavailable
from sightline.patience import ONCE
from sightline.sampler import Beams, Blank, SamplerClient, exact, manifest_digest
from vllm_server import VllmServer

BASE = WEIGHTS / "llava"
CAPTION = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture(scope="module")
def mind() -> Mind:
    return Mind(BASE)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1, v2: adapters; v3: a merged checkpoint; v4: an adapter that is zero; v5: one on the vision tower."""
    root = tmp_path_factory.mktemp("policies")
    make_adapter(root, BASE, 1, scale=0.05, targets=CAPTION)
    make_adapter(root, BASE, 2, scale=0.05, targets=CAPTION, parent_version=1)
    make_full(root, BASE, 3, noise=0.01, kind="merged")
    make_adapter(root, BASE, 4, scale=0.0, targets=CAPTION)
    make_adapter(root, BASE, 5, scale=0.05, targets=["fc1"])
    return root


@pytest.fixture(scope="module")
def shared(mind: Mind) -> Iterator[tuple[VllmServer, Running]]:
    server = VllmServer(mind, dev_mode=True)
    with serving_app(server.app) as url:
        values = {"url": url, "poll_seconds": 0.1, "overload_seconds": 5, "dev_mode": True, "sleep": True}
        with running(BASE, engine={"kind": "vllm", "vllm": values}) as at:
            yield server, at


@pytest.fixture
def server(shared: tuple[VllmServer, Running]) -> VllmServer:
    server = shared[0]
    server.requests.clear()
    server.calls.clear()
    server.fail.clear()
    server.seconds = 0.0
    return server


@pytest.fixture
def client(shared: tuple[VllmServer, Running], server: VllmServer) -> Iterator[SamplerClient]:
    with SamplerClient(shared[1].address, timeout=280) as client:
        yield client
        client.resume()
        client.activate(0)
        for policy in client.policies().policies[1:]:
            client.retire(policy.version)


def test_k_candidates_come_in_one_request_and_each_can_be_had_alone(
    server: VllmServer, client: SamplerClient, mind: Mind
) -> None:
    samples = client.sample(IMAGE, PROMPT, 4, seed=7, max_tokens=10)
    (body,) = server.requests
    assert body["n"] == 4
    assert body["cache_salt"] == "v0"
    seeds = [c.seed for c in samples.candidates]
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    for c in samples.candidates:
        np.testing.assert_allclose(c.logprobs, truth(mind, c.token_ids.tolist()), atol=1e-4)
        assert c.behaviour_logprobs is None
        assert c.finish_reason == ("eos" if c.token_ids[-1] == mind.eos else "length")
        assert 4 not in c.token_ids
    alone = client.sample(IMAGE, PROMPT, 1, seeds=[seeds[2]], max_tokens=10).candidates[0]
    assert alone.token_ids.tolist() == samples.candidates[2].token_ids.tolist()
    assert samples.prompt_tokens == 18
    assert samples.engine == "vllm 0.33.0"


def test_several_images_and_turns(server: VllmServer, client: SamplerClient, mind: Mind) -> None:
    samples = client.sample(IMAGES, MESSAGES, 2, seed=7, max_tokens=8)
    (body,) = server.requests
    assert [len(message["content"]) for message in body["messages"]] == [1, 2, 1, 2]
    assert samples.rendered_prompt == rendered(mind, MESSAGES)
    for c in samples.candidates:
        ids = c.token_ids.tolist()
        wanted = truth(mind, ids, image=IMAGES, prompt=MESSAGES)
        np.testing.assert_allclose(c.logprobs, wanted, atol=1e-4)
        assert np.abs(wanted - truth(mind, ids, image=IMAGES[::-1], prompt=MESSAGES)).max() > 1e-3
    scored = client.score_tokens(IMAGES, MESSAGES, ids).logprobs
    np.testing.assert_allclose(scored, wanted, atol=1e-4)
    capabilities = client.policies().capabilities
    assert (capabilities.max_images, capabilities.max_turns, capabilities.one_image_only) == (16, 64, "")


def test_nothing_is_left_to_the_checkpoints_generation_config(server: VllmServer, client: SamplerClient) -> None:
    client.sample(IMAGE, PROMPT, 1, max_tokens=4)
    sent = server.requests[0]
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert plain.items() <= sent.items()
    assert sent["logit_bias"] == {"0": -100.0, "2": -100.0, "4": -100.0}  # pad, begin, the image's placeholder
    client.sample(
        IMAGE, PROMPT, 1, max_tokens=4, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.5
    )
    sent = server.requests[1]
    assert [round(sent[name], 5) for name in plain] == [0.5, 0.9, 3, 0.1, 1.5]


def test_seeds_that_are_no_run_have_requests_of_their_own(server: VllmServer, client: SamplerClient) -> None:
    samples = client.sample(IMAGE, PROMPT, 4, seeds=[5, 6, 100, (1 << 63) + 9], max_tokens=4)
    assert sorted((body["n"], body["seed"]) for body in server.requests) == [(1, 9), (1, 100), (2, 5)]
    assert [c.seed for c in samples.candidates] == [5, 6, 100, (1 << 63) + 9]


def test_greedy_is_asked_for_once(server: VllmServer, client: SamplerClient) -> None:
    candidates = client.sample(IMAGE, PROMPT, 3, temperature=0, max_tokens=6).candidates
    assert [body["n"] for body in server.requests] == [1]
    assert len({tuple(c.token_ids.tolist()) for c in candidates}) == 1
    assert candidates[0].behaviour_logprobs is not None
    assert not candidates[0].behaviour_logprobs.any()


def test_stop_strings_end_a_candidate(client: SamplerClient) -> None:
    found = client.sample(IMAGE, PROMPT, 4, stop=["square", "star"], max_tokens=30).candidates
    assert "stop" in {c.finish_reason for c in found}
    for c in found:
        assert "square" not in c.text
        assert len(c.logprobs) == len(c.token_ids)


def test_scores_are_the_policys(client: SamplerClient, mind: Mind, policies: Path) -> None:
    ids = client.sample(IMAGE, PROMPT, 1, seed=3, max_tokens=10).candidates[0].token_ids.tolist()
    client.stage(policies / "v000001", 1)
    for version, model in ((0, mind.base), (1, mind.load(policies / "v000001"))):
        scored = client.score_tokens(IMAGE, PROMPT, ids, policy=exact(version))
        np.testing.assert_allclose(scored.logprobs, truth(mind, ids, model), atol=1e-4)
    with pytest.raises(InvalidInput, match="stands for an image"):
        client.score_tokens(IMAGE, PROMPT, [7, 4])


def test_adapters_have_names_of_their_own_and_answer_side_by_side(
    server: VllmServer, client: SamplerClient, mind: Mind, policies: Path
) -> None:
    staged = client.stage(policies / "v000001", 1, probes=probes(mind, mind.load(policies / "v000001")))
    assert staged.changed_modules == 8
    assert staged.arrival is not None
    assert staged.arrival.passed
    assert staged.arrival.correlation is not None
    assert staged.arrival.correlation > 0.99
    assert staged.arrival.sampled_gap is not None
    label = f"v1-{manifest_digest(policies / 'v000001')[:12]}"
    assert list(server.loras) == [label]
    server.requests.clear()
    assert client.sample(IMAGE, PROMPT, 1, max_tokens=2).policy_version == 0
    client.activate(1)
    samples = client.sample(IMAGE, PROMPT, 2, max_tokens=8)
    assert samples.policy_version == 1
    np.testing.assert_allclose(
        samples.candidates[0].logprobs,
        truth(mind, samples.candidates[0].token_ids.tolist(), server.loras[label][1]),
        atol=1e-4,
    )
    client.stage(policies / "v000002", 2)
    client.sample(IMAGE, PROMPT, 1, max_tokens=2, policy=exact(0))
    assert [(b["model"], b["cache_salt"]) for b in server.requests] == [
        ("llava", "v0"),
        (label, label),
        ("llava", "v0"),
    ]
    client.activate(2)
    client.retire(1)
    assert label not in server.loras


def test_what_a_restart_of_vllm_forgot_is_loaded_again(
    server: VllmServer, client: SamplerClient, policies: Path
) -> None:
    client.stage(policies / "v000001", 1)
    client.activate(1)
    wanted = client.sample(IMAGE, PROMPT, 2, seed=4, max_tokens=6).candidates
    server.loras.clear()
    found = client.sample(IMAGE, PROMPT, 2, seed=4, max_tokens=6).candidates
    assert [c.token_ids.tolist() for c in found] == [c.token_ids.tolist() for c in wanted]
    assert {c.policy_version for c in found} == {1}
    assert len(server.loras) == 1


@pytest.mark.parametrize(
    ("version", "reason", "names"),
    [
        (4, "POLICY_CHANGES_NOTHING", "A, B or the scale is zero"),
        (5, "ADAPTER_UNSUPPORTED", "outside the language model"),
    ],
)
def test_adapters_that_would_do_nothing_are_refused(
    server: VllmServer, client: SamplerClient, policies: Path, version: int, reason: str, names: str
) -> None:
    with pytest.raises(PreconditionFailed, match=names) as error:
        client.stage(policies / f"v00000{version}", version)
    assert error.value.reason == reason
    assert server.loras == {}


@pytest.mark.parametrize("what", [500, 503, "break", "abort"])
def test_what_came_is_kept_and_the_rest_asked_for_with_its_seeds(
    server: VllmServer, client: SamplerClient, what: int | str
) -> None:
    wanted = client.sample(IMAGE, PROMPT, 4, seeds=[20, 21, 22, 23], max_tokens=5)
    server.requests.clear()
    server.fail.append(what)
    found = client.sample(IMAGE, PROMPT, 4, seeds=[20, 21, 22, 23], max_tokens=5)
    assert [c.token_ids.tolist() for c in found.candidates] == [c.token_ids.tolist() for c in wanted.candidates]
    first, second = server.requests
    kept = 1 if isinstance(what, str) else 0
    assert (first["n"], first["seed"]) == (4, 20)
    assert (second["n"], second["seed"]) == (4 - kept, 20 + kept)


def test_what_fails_again_is_told_after_what_came(
    server: VllmServer, client: SamplerClient, shared: tuple[VllmServer, Running]
) -> None:
    server.fail.extend(["break", "break", "break"])
    with (
        SamplerClient(shared[1].address, patience=ONCE) as once,
        once.stream(IMAGE, PROMPT, 4, seeds=[20, 21, 22, 23], max_tokens=5) as stream,
    ):
        came = iter(stream)
        assert [next(came).index, next(came).index] == [0, 1]
        with pytest.raises(Unavailable, match="EngineCore died"):
            next(came)


def test_too_long_a_prompt_is_told_and_never_cut(server: VllmServer, client: SamplerClient) -> None:
    with pytest.raises(InvalidInput, match="maximum context length is 256") as error:
        client.sample(IMAGE, "picture " * 120, 2, max_tokens=200)
    assert error.value.reason == "PROMPT_TOO_LONG"
    assert len(server.requests) == 1
    with pytest.raises(InvalidInput, match="does not support beams, distortion"):
        client.sample(IMAGE, PROMPT, 2, beams=Beams(2), distortion=Blank())


def test_whole_checkpoints_replace_the_weights_between_requests(
    server: VllmServer, client: SamplerClient, mind: Mind, policies: Path
) -> None:
    client.stage(policies / "v000003", 3)
    assert "/collective_rpc" not in server.calls
    sent = probes(mind, mind.load(policies / "v000003"))
    server.calls.clear()
    active = client.activate(3, probes=sent)
    assert server.calls == [
        "/pause?mode=wait", "/collective_rpc", "/update_weight_version", "/reset_prefix_cache", "/reset_mm_cache",
        "/reset_encoder_cache", "/resume",
    ]  # fmt: skip
    assert active.arrival is not None
    assert active.arrival.passed
    samples = client.sample(IMAGE, PROMPT, 2, max_tokens=8)
    assert samples.policy_version == 3
    label = f"v3-{manifest_digest(policies / 'v000003')[:12]}"
    assert (server.requests[-1]["model"], server.requests[-1]["cache_salt"]) == ("llava", label)
    np.testing.assert_allclose(
        samples.candidates[0].logprobs, truth(mind, samples.candidates[0].token_ids.tolist(), server.base), atol=1e-4
    )
    with pytest.raises(PreconditionFailed, match="holds one version at a time"):
        client.sample(IMAGE, PROMPT, 1, policy=exact(0))
    server.label, server.base = None, mind.base  # it was restarted and serves the base model again
    found = client.sample(IMAGE, PROMPT, 2, seed=1, max_tokens=8)
    assert found.policy_version == 3
    for c in found.candidates:
        np.testing.assert_allclose(c.logprobs, truth(mind, c.token_ids.tolist(), server.base), atol=1e-4)
    assert server.label == label
    assert server.base is not mind.base
    client.activate(0)
    assert server.base is mind.base
    assert client.sample(IMAGE, PROMPT, 1, max_tokens=2).policy_version == 0


def test_a_keeping_pause_freezes_the_engine(server: VllmServer, client: SamplerClient) -> None:
    assert client.pause("keep") == 0
    assert server.calls == ["/pause?mode=keep&clear_cache=false"]
    assert server.frozen
    client.resume()
    assert not server.frozen
    assert len(client.sample(IMAGE, PROMPT, 2, max_tokens=3).candidates) == 2


def test_processed_logprobs_are_found_out(mind: Mind) -> None:
    server = VllmServer(mind, logprobs_mode="processed_logprobs")
    with serving_app(server.app) as url:
        engine = {"kind": "vllm", "vllm": {"url": url}}
        with running(BASE, engine=engine) as at, SamplerClient(at.address) as client:
            assert client.policies().capabilities.logprobs == "behaviour"
            processed = client.sample(IMAGE, PROMPT, 1, temperature=0.5, max_tokens=4).candidates[0]
            assert not len(processed.logprobs)
            assert processed.behaviour_logprobs is not None
            plain = client.sample(IMAGE, PROMPT, 1, max_tokens=4).candidates[0]
            np.testing.assert_allclose(plain.logprobs, truth(mind, plain.token_ids.tolist()), atol=1e-4)
            with pytest.raises(InvalidInput, match="cannot pause with keep"):
                client.pause("keep")


def test_settings_that_would_evict_adapters_are_refused() -> None:
    from pydantic import ValidationError
    from sightline_sampler.settings import SamplerSettings

    engine = {"kind": "vllm", "model": "x", "vllm": {"max_loras": 2}}
    with pytest.raises(ValidationError, match="evicts"):
        SamplerSettings.model_validate({"engine": engine, "policies": {"max_loaded": 3}})


@pytest.mark.skipif("SIGHTLINE_TEST_VLLM_URL" not in os.environ, reason="SIGHTLINE_TEST_VLLM_URL names no vLLM")
def test_against_a_real_vllm() -> None:
    url, model = os.environ["SIGHTLINE_TEST_VLLM_URL"], Path(os.environ["SIGHTLINE_TEST_VLLM_MODEL"])
    engine = {"kind": "vllm", "vllm": json.loads(os.environ.get("SIGHTLINE_TEST_VLLM_SETTINGS", "{}")) | {"url": url}}
    with running(model, engine=engine) as at, SamplerClient(at.address, timeout=300) as client:
        samples = client.sample(IMAGE, PROMPT, 4, seed=7, max_tokens=16)
        seeds = [c.seed for c in samples.candidates]
        assert seeds == list(range(seeds[0], seeds[0] + 4))
        for c in samples.candidates:
            alone = client.sample(IMAGE, PROMPT, 1, seeds=[c.seed], max_tokens=16).candidates[0]
            assert alone.token_ids[:4].tolist() == c.token_ids[:4].tolist()
            if len(c.logprobs):
                scored = client.score_tokens(IMAGE, PROMPT, c.token_ids).logprobs
                assert float(np.abs(scored - c.logprobs).mean()) < 0.1


def test_it_sleeps_and_what_wakes_up_must_say_the_same(
    server: VllmServer, client: SamplerClient, policies: Path
) -> None:
    client.stage(policies / "v000001", 1)
    client.stage(policies / "v000002", 2)
    client.activate(2)
    ids = client.sample(IMAGE, PROMPT, 1, seed=1, max_tokens=6).candidates[0].token_ids.tolist()

    def said() -> list[list[float]]:
        scores = (client.score_tokens(IMAGE, PROMPT, ids, policy=exact(version)) for version in (0, 1, 2))
        return [one.logprobs.tolist() for one in scores]

    before = said()
    client.pause(release=True)
    assert server.asleep
    client.pause(release=True)  # again: nothing more happens
    with pytest.raises(PreconditionFailed, match="Resume first"):
        client.activate(1)
    client.resume()
    client.resume()
    assert (said(), server.asleep) == (before, False)
    assert [call for call in server.calls if call.startswith("/sleep")] == ["/sleep?level=1&mode=wait"]

    server.forgetful = True
    try:
        client.pause(release=True)
        client.resume()  # it has lost its adapters, and they are loaded again
        assert said() == before
        client.activate(0)
        client.stage(policies / "v000003", 3)
        client.activate(3)
        full = client.score_tokens(IMAGE, PROMPT, ids).logprobs.tolist()
        client.pause(release=True)
        client.resume()
        assert client.score_tokens(IMAGE, PROMPT, ids).logprobs.tolist() == full
    finally:
        server.forgetful = False


def test_weights_that_do_not_come_back_are_not_sampled_from(
    shared: tuple[VllmServer, Running], server: VllmServer, client: SamplerClient, policies: Path
) -> None:
    client.stage(policies / "v000001", 1)
    client.activate(1)
    client.pause(release=True)
    server.forgetful, server.inert = True, True
    try:
        with pytest.raises(InternalError, match="policy 1 gives other log-probs") as caught:
            client.resume()
        assert caught.value.reason == "WEIGHTS_DID_NOT_COME_BACK"
        with SamplerClient(shared[1].address, timeout=2, patience=ONCE) as other, pytest.raises(SightlineError):
            other.sample(IMAGE, PROMPT, 1, max_tokens=2)
    finally:
        server.forgetful = server.inert = False
    client.resume()
