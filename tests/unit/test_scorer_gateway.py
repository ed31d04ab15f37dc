"""The gateway: JSON and OpenRLHF's convention over real HTTP and gRPC, with a scripted scorer."""

import base64
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from chassis_certificates import Authority, put
from field import controls
from scorer_gateways import Gateway
from scorer_scripted import Scripted, scripted

PICTURE = b"\x89PNG\r\n\x1a\n" + b"picture" * 1000
IMAGE = {"base64": base64.b64encode(PICTURE).decode()}
LABEL = f"data:image/jpeg;base64,{IMAGE['base64']}"


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


@pytest.fixture(scope="module")
def gateway(there: tuple[Scripted, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    found = Gateway(
        tmp_path_factory.mktemp("gateway"),
        there[1],
        "http.max_body_bytes=100000",
        "http.max_items=8",
        "scorer.timeout_seconds=2",
        "openrlhf.on_failure=drop",
    )
    yield found
    assert found.stop() == 0
    assert not found.announce.exists()


def test_scores_and_their_model_come_as_json(gateway: Gateway) -> None:
    answer = gateway.post("/v1/score", {"image": IMAGE, "texts": ["ok 3", "another"], "kind": "cosine"})
    assert answer.status_code == 200
    body = answer.json()
    assert [score["value"] for score in body["scores"]] == [3, 3]
    assert body["kind"] == "cosine"
    assert body["image_sha256"] == hashlib.sha256(PICTURE).hexdigest()
    assert "weights_digest" in body["model"]


def test_an_image_uploaded_once_is_named_by_its_digest(gateway: Gateway, there: tuple[Scripted, str]) -> None:
    answer = gateway.http.post("/v1/images", content=PICTURE)
    digest = answer.json()["sha256"]
    assert there[0].store[bytes.fromhex(digest)] == PICTURE
    scored = gateway.post("/v1/score", {"image": {"sha256": digest}, "texts": ["ok 2"]})
    assert scored.json()["scores"][0]["value"] == 2


def test_each_item_of_many_has_its_own_outcome(gateway: Gateway) -> None:
    items = [
        {"image": IMAGE, "texts": ["ok 1"]},
        {"image": {"base64": "no base64!"}, "texts": ["ok 1"]},
        {"image": IMAGE, "texts": ["refuse"]},
        {"image": {"sha256": "00" * 32}, "texts": ["ok 1"]},
        {"image": IMAGE, "texts": ["ok 5"]},
    ]
    answer = gateway.post("/v1/score_many", {"items": items})
    assert answer.status_code == 200
    outcomes = answer.json()["outcomes"]
    seen = [outcome["error"]["reason"] if outcome["error"] else outcome["result"]["scores"][0]["value"]
            for outcome in outcomes]  # fmt: skip
    assert seen == [1, "BASE64_MALFORMED", "TEXT_TOO_LONG", "IMAGE_NOT_FOUND", 5]
    assert all((outcome["result"] is None) != (outcome["error"] is None) for outcome in outcomes)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"image": IMAGE, "texts": ["refuse"]}, 400, "TEXT_TOO_LONG"),
        ({"image": {"sha256": "00" * 32}, "texts": ["ok 1"]}, 404, "IMAGE_NOT_FOUND"),
        ({"image": {"sha256": "xyz"}, "texts": ["ok 1"]}, 400, "DIGEST_MALFORMED"),
        ({"image": IMAGE, "texts": ["full"]}, 429, "OVERLOADED"),
        ({"image": IMAGE, "texts": ["away 1000000"]}, 503, "UNAVAILABLE"),
        ({"image": IMAGE, "texts": ["sleep 9"]}, 504, "DEADLINE_EXCEEDED"),
        ({"image": IMAGE, "texts": ["ok not-a-number"]}, 500, "UNKNOWN"),
        ({"image": IMAGE, "texts": []}, 400, "BODY_MALFORMED"),
        ({"image": {}, "texts": ["ok 1"]}, 400, "BODY_MALFORMED"),
        ({"image": {**IMAGE, "uri": "https://a/b"}, "texts": ["ok 1"]}, 400, "BODY_MALFORMED"),
        ({"image": IMAGE, "texts": ["ok 1"], "knid": "cosine"}, 400, "BODY_MALFORMED"),
        ({"image": IMAGE, "texts": ["ok 1"], "kind": "clipscore"}, 400, "BODY_MALFORMED"),
        ({"image": IMAGE, "texts": ["ok 1"], "phrases": []}, 400, "PHRASES_MISMATCH"),
        ({"image": IMAGE, "texts": ["a\ud800"]}, 400, "TEXT_NOT_UNICODE"),
        ({"image": {"base64": "A" * 100_001}, "texts": ["ok 1"]}, 413, "BODY_TOO_LARGE"),
        ([], 400, "BODY_MALFORMED"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_failure_has_the_status_of_its_grpc_one(gateway: Gateway, body: Any, status: int, reason: str) -> None:
    answer = gateway.http.post("/v1/score", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["reason"] == reason
    assert error["message"]
    if error["retry_after_seconds"] is not None:
        assert int(answer.headers["Retry-After"]) >= 1


def test_a_body_without_stated_length_is_bounded_too(gateway: Gateway) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"image": {"base64": "'
        for _ in range(200):
            yield b"A" * 1000

    answer = gateway.http.post("/v1/score", content=endless(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "BODY_TOO_LARGE")
    answer = gateway.http.post("/v1/images", content=endless())
    assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "BODY_TOO_LARGE")
    assert gateway.post("/v1/score", {"image": IMAGE, "texts": ["ok 1"]}).status_code == 200


def test_too_many_items_are_refused(gateway: Gateway) -> None:
    answer = gateway.post("/v1/score_many", {"items": [{"image": IMAGE, "texts": ["ok 1"]}] * 9})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "TOO_MANY_ITEMS")


def test_more_requests_than_it_takes_on_are_told_when_to_come_back(there: tuple[Scripted, str], tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, there[1], "http.max_requests=2")
    try:
        address = str(gateway.http.base_url)
        idle = [httpx.Client(base_url=address, timeout=30) for _ in range(6)]
        for client in idle:  # open connections do not count
            assert client.get("/openapi.json").status_code == 200
        with ThreadPoolExecutor(2) as threads:
            body = {"image": IMAGE, "texts": ["sleep 2"]}
            busy = [threads.submit(client.post, "/v1/score", json=body) for client in idle[:2]]
            while there[0].running < 2:
                time.sleep(0.01)
            refused = gateway.post("/v1/score", {"image": IMAGE, "texts": ["ok 1"]})
            assert (refused.status_code, refused.json()["error"]["reason"]) == (429, "OVERLOADED")
            assert refused.headers["Retry-After"] == "1"
            assert gateway.http.get("/healthz").status_code != 429
        assert [call.result().status_code for call in busy] == [200, 200]
        assert gateway.post("/v1/score", {"image": IMAGE, "texts": ["ok 1"]}).status_code == 200
    finally:
        gateway.stop()


def test_openapi_tells_of_it_all(gateway: Gateway) -> None:
    seen = gateway.http.get("/openapi.json").json()
    ours = {"/v1/score", "/v1/score_many", "/v1/images", "/v1/models", "/get_reward", "/healthz"}
    assert ours | {"/unirl/score", "/unirl/health", "/verl_omni/{model}"} == set(seen["paths"])
    for path, methods in seen["paths"].items():
        for method in methods.values():
            assert {"4XX", "5XX"} <= set(method["responses"]), path


def test_an_unknown_path_has_the_one_form_too(gateway: Gateway) -> None:
    assert gateway.http.get("/v2").json()["error"]["reason"] == "NO_SUCH_PATH"
    assert gateway.http.get("/v1/score").status_code == 405


def test_rewards_by_openrlhfs_convention(gateway: Gateway) -> None:
    body = {
        "query": ["user: say<|im_end|>ok 4</s>", "user: say<|im_end|>ok 2", "user: sayrefuse", "another prompt ok 1"],
        "prompts": ["user: say"] * 4,
        "labels": [LABEL, json.dumps({"image": LABEL}), LABEL, LABEL],
    }
    answer = gateway.post("/get_reward", body)
    assert answer.status_code == 200
    found = json.loads(answer.text)  # Python's parser accepts NaN, as OpenRLHF's client does
    assert found["rewards"][:2] == [4, 2]
    assert all(math.isnan(reward) for reward in found["rewards"][2:])
    assert found["extra_logs"]["scored"] == [1, 1, 0, 0]
    mismatch = gateway.post("/get_reward", {**body, "labels": [LABEL]})
    assert (mismatch.status_code, mismatch.json()["error"]["reason"]) == (400, "ROWS_MISMATCH")


def test_what_a_failure_is_worth_must_be_said(there: tuple[Scripted, str], tmp_path: Path) -> None:
    body = {"query": ["say refuse", "say ok 2"], "prompts": ["say", "say"], "labels": [LABEL, LABEL]}
    for settings, status, rewards in (
        ([], 400, None),
        (["openrlhf.on_failure=raise"], 400, None),
        (["openrlhf.on_failure=value", "openrlhf.failure_value=-7"], 200, [-7, 2]),
    ):
        gateway = Gateway(tmp_path, there[1], *settings)
        try:
            answer = gateway.post("/get_reward", body)
            assert answer.status_code == status
            assert answer.json().get("rewards") == rewards
        finally:
            assert gateway.stop() == 0


def test_callers_without_the_token_are_refused(there: tuple[Scripted, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    gateway = Gateway(tmp_path, there[1], f"http.token_file={tmp_path / 'token'}")
    try:
        body = {"image": IMAGE, "texts": ["ok 1"]}
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer no"}, 401),
            ({"Authorization": "Bearer s3cret"}, 200),
        ):
            answer = gateway.http.post("/v1/score", json=body, headers=headers)
            assert answer.status_code == status
        assert answer.json()["scores"][0]["value"] == 1
    finally:
        gateway.stop()


def test_a_scorer_that_wants_a_certificate(tmp_path: Path) -> None:
    authority = Authority("tests")
    server, (certificate, key) = authority.sign("scorer"), authority.sign("gateway").write(tmp_path, "gateway")
    ca = put(tmp_path / "ca.crt", authority.pem)
    with scripted(grpc.ssl_server_credentials([(server.key, server.certificate)], authority.pem, True)) as (_, target):
        files = f"scorer.ca_file={ca}", f"scorer.certificate_file={certificate}", f"scorer.key_file={key}"
        gateway = Gateway(tmp_path, target, *files)
        try:
            assert gateway.post("/v1/score", {"image": IMAGE, "texts": ["ok 1"]}).status_code == 200
        finally:
            gateway.stop()


@pytest.mark.parametrize(
    ("settings", "code", "seen"),
    [
        ([], 2, "scorer.target=127.0.0.1:50051"),
        (["scorer.target=a:1", "openrlhf.on_failure=value"], 2, "failure_value"),
        (["scorer.target=a:1", "openrlhf.on_failure=zero"], 2, "on_failure"),
        (["scorer.target=a:1", "http.token_file=/nowhere"], 1, "/nowhere"),
    ],
)
def test_unusable_settings_end_it_with_one_line(settings: list[str], code: int, seen: str) -> None:
    command = [sys.executable, "-m", "sightline_cli", "serve", "scorer-http"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == code
    assert seen in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def hasty(there: tuple[Scripted, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with little patience and few concurrent requests."""
    found = Gateway(
        tmp_path_factory.mktemp("hasty"),
        there[1],
        "http.max_requests=4",
        "http.header_seconds=1",
        "http.body_seconds=3",
        "http.idle_seconds=1",
    )
    yield found
    assert found.stop() == 0


def connected(gateway: Gateway) -> socket.socket:
    return socket.create_connection((gateway.http.base_url.host, gateway.http.base_url.port or 80), timeout=60)


HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.field
def test_half_sent_bodies_take_nobodys_place_and_end(hasty: Gateway) -> None:
    halves = [connected(hasty) for _ in range(20)]
    for half in halves:
        half.sendall(HEAD + b'{"image"')
    answer = hasty.post("/v1/score", {"image": IMAGE, "texts": ["ok 3"]})
    assert answer.status_code == 200
    for half in halves:
        seen = b""
        while b"BODY_TOO_SLOW" not in seen and (part := half.recv(10_000)):
            seen += part
        assert b" 408 " in seen
        assert b"BODY_TOO_SLOW" in seen
        half.close()


@pytest.mark.field
@pytest.mark.parametrize("sent", [b"", b"POST /v1/score HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_connection_without_whole_headers_ends(hasty: Gateway, sent: bytes) -> None:
    with connected(hasty) as half:
        half.sendall(sent)
        assert half.recv(10) == b""


@pytest.mark.field
def test_a_connection_that_is_kept_for_nothing_ends(hasty: Gateway) -> None:
    with connected(hasty) as kept:
        kept.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in kept.recv(100)
        kept.sendall(b"GET /hea")  # the next one's headers never end
        while kept.recv(100_000):
            pass


@pytest.mark.field
@pytest.mark.parametrize(
    ("headers", "content", "status", "reason", "seen"),
    [
        (
            {"content-type": "multipart/form-data; boundary=x"},
            b"--x\r\n\r\n" + PICTURE,
            415,
            "CONTENT_TYPE",
            "not a form",
        ),
        ({"content-type": "text/html"}, b"<html>", 415, "CONTENT_TYPE", "the image file itself"),
        ({"content-type": "image/png"}, b"<html>", 400, "IMAGE_UNREADABLE", "3c 68 74 6d"),
        ({}, base64.b64encode(PICTURE), 400, "IMAGE_UNREADABLE", "not base64"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b", 400, "IMAGE_UNREADABLE", "not a JPEG"),
    ],
)
def test_what_is_no_image_is_not_stored(
    gateway: Gateway, headers: dict[str, str], content: bytes, status: int, reason: str, seen: str
) -> None:
    answer = gateway.http.post("/v1/images", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["reason"] == reason
    assert seen in answer.json()["error"]["message"]


@pytest.mark.field
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/score_many", "/get_reward"])
def test_a_json_body_that_is_not_called_so_is_told_so(gateway: Gateway, path: str, kind: str | None) -> None:
    body = json.dumps({"image": IMAGE, "texts": ["ok 3"]}).encode()
    headers = {} if kind is None else {"content-type": kind}
    answer = gateway.http.post(path, content=body, headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["reason"] == "CONTENT_TYPE"
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.field
@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(PICTURE).decode(),
        IMAGE["base64"] + "\r\n",
        f"data:image/png;base64,{IMAGE['base64']}",
        f"data:image/png;charset=utf-8;base64,{IMAGE['base64']}",
        f"data:image/png;name=a%20b.png;x=1;base64,\n{base64.encodebytes(PICTURE).decode()}",
        f"DATA:image/PNG;Base64,{IMAGE['base64']}",
        f"data:;base64,{IMAGE['base64']}",
    ],
)
def test_base64_is_decoded_however_it_is_wrapped(gateway: Gateway, text: str) -> None:
    answer = gateway.post("/v1/score", {"image": {"base64": text}, "texts": ["ok 3"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["image_sha256"] == hashlib.sha256(PICTURE).hexdigest()
    if text.lower().startswith("data:"):
        rows = {"query": ["p ok 2"], "prompts": ["p"], "labels": [text]}
        assert gateway.post("/get_reward", rows).json()["rewards"] == [2.0]


@pytest.mark.field
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data:image/png,abc", "DATA_URI_UNUSABLE"),
        ("data:text/html;base64,aaaa", "DATA_URI_UNUSABLE"),
        ("data:image/png;base64", "DATA_URI_UNUSABLE"),
        ("data:" + ";a=b" * 100_000, "DATA_URI_UNUSABLE"),
        *controls(("a-b_", "BASE64_MALFORMED"), ("abc", "BASE64_MALFORMED")),
    ],
)
def test_what_is_no_base64_says_why(gateway: Gateway, text: str, reason: str) -> None:
    answer = gateway.post("/v1/score", {"image": {"base64": text[:90_000]}, "texts": ["ok 3"]})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, reason)
