"""UniRL's and verl-omni's reward clients need only a URL, and nothing is unpickled."""

import base64
import contextlib
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scorer_gateways import Gateway
from scorer_scripted import scripted
from sightline.errors import InvalidInput
from sightline_scorer.gateway.plain_pickle import plain_values

PICTURE = b"\x89PNG\r\n\x1a\n" + b"picture" * 100


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with scripted() as (_, target):
        found = Gateway(tmp_path_factory.mktemp("gateway"), target, "http.max_items=8", "scorer.timeout_seconds=2")
        yield found
        found.stop()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner, inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_plain_values_are_what_pickle_reads(value: Any, protocol: int) -> None:
    try:
        pickled = pickle.dumps(value, protocol)
        assert plain_values(pickled) == value
    except InvalidInput:
        assert protocol == 2  # bytes and very long integers of protocol 2 are calls


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Evil(), {"images": [Evil()]}, os.system, {1, 2}, bytearray(b"x"), 1 + 2j])
def test_what_would_run_code_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(InvalidInput, match="pickle"):
        plain_values(pickle.dumps(value, protocol))


def test_a_key_that_would_be_hashed_without_end_is_refused() -> None:
    """A tuple in a tuple, 400,000 deep, as a dict's key: hashing it ends the process."""
    with pytest.raises(InvalidInput, match="str expected"):
        plain_values(b"\x80\x02})" + b"\x85" * 400_000 + b"Ns.")


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_read(content: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        plain_values(content)


def post(gateway: Gateway, path: str, body: Any) -> tuple[int, Any]:
    """Post as verl-omni's client does."""
    answer = gateway.http.post(path, content=body if isinstance(body, bytes) else pickle.dumps(body))
    return answer.status_code, pickle.loads(answer.content)


@pytest.mark.parametrize("path", ["/verl_omni", "/verl_omni/any"])
def test_verl_omni(gateway: Gateway, path: str) -> None:
    body = {"images": [PICTURE, PICTURE], "prompts": ["ok 3", "ok 4"], "metadata": {}}
    assert post(gateway, path, body) == (200, {"scores": [3.0, 4.0]})


def test_a_failure_of_verl_omnis_is_no_score(gateway: Gateway) -> None:
    status, body = post(gateway, "/verl_omni", {"images": [PICTURE] * 2, "prompts": ["ok 3", "refuse"]})
    assert status == 400
    assert set(body) == {"error"}
    assert body["error"].startswith("image 1:")
    for wrong in ({"images": [PICTURE], "prompts": []}, {"images": ["a"], "prompts": ["b"]}, [1], b"no pickle"):
        status, body = post(gateway, "/verl_omni", wrong)
        assert (status, set(body)) == (400, {"error"})


def sample(text: str, *rewards: str, **more: Any) -> dict[str, Any]:
    turn = {"text": text, "image_b64": base64.b64encode(PICTURE).decode()}
    return {"history": [turn], "required_rewards": list(rewards), "metadata": None, **more}


def test_unirl(gateway: Gateway) -> None:
    health = gateway.http.get("/unirl/health").json()
    assert health["status"] == "ok"
    assert "m" in health["rewards"]
    name = "m"
    samples = [sample("ok 3", name, request_id="a", source_rank=2), sample("refuse", name, "other", request_id="b")]
    answer = gateway.post("/unirl/score", {"protocol_version": "1", "requests": samples})
    assert answer.status_code == 200
    body = answer.json()
    assert body["results"][0] == {name: {"score": 3.0}}
    assert body["errors"][0] == {}
    assert name not in body["results"][1]
    assert set(body["errors"][1]) == {name, "other"}
    assert [(one["request_id"], one["source_rank"]) for one in body["identities"]] == [("a", 2), ("b", None)]


def test_unirls_unusable_samples_are_errors_of_their_own(gateway: Gateway) -> None:
    samples = [sample("ok 3", "m"), {"history": [{"text": "a"}], "required_rewards": ["m"]}]
    samples.append({"history": [{"text": "a", "image_b64": "%%"}], "required_rewards": ["m"]})
    body = gateway.post("/unirl/score", {"requests": samples}).json()
    assert body["results"] == [{"m": {"score": 3.0}}, {}, {}]
    assert "image_b64" in body["errors"][1]["m"]
    assert body["errors"][2]["m"]


def test_the_docs_load_nothing_from_elsewhere(gateway: Gateway) -> None:
    page = gateway.http.get("/docs").text
    assert "/verl_omni/{model}" in page
    assert "/v1/score_many" in page
    assert "//" not in page.replace("<!doctype", "").split("<body>")[0].replace("http://www.w3.org", "")
    assert gateway.http.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
