"""Traces over HTTP: the gateway continues its caller's trace, and a sampler sends the call's trace to its engine."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_mind import Mind
from engine_server import serving_app
from engine_trainer import IMAGE, PROMPT
from otlp_receiver import Receiver, receiving
from running import WEIGHTS
from sampler_models import running
from scorer_gateways import Gateway
from scorer_scripted import scripted
from sightline import channel
from sightline.sampler import SamplerClient
from sightline_chassis import traces
from sightline_chassis.sections import TraceSettings
from tgi_server import TgiServer
from vllm_server import VllmServer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
BASE = WEIGHTS / "llava"
ENCODED = {"base64": base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"picture" * 1000).decode()}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver of this process's spans."""
    monkeypatch.setattr(channel, "_tracers", [])
    with receiving() as found:
        traces.begin(TraceSettings(endpoint=found.endpoint), "probe")
        yield found
        traces.end()


class Heard:
    """An engine's server, which records the header `traceparent` of each request, by path."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.sent: list[tuple[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        self.sent.append((scope["path"], headers.get(b"traceparent", b"").decode()))
        await self._app(scope, receive, send)


def test_the_gateway_is_in_its_caller_s_trace(tmp_path: Path) -> None:
    with receiving() as receiver, scripted() as (_, target):
        gateway = Gateway(tmp_path, target, f"traces.endpoint={receiver.endpoint}", "scorer.timeout_seconds=2")
        body = {"image": ENCODED, "texts": ["ok 1"]}
        assert gateway.http.post("/v1/score", json=body, headers=SENT).status_code == 200
        assert gateway.http.post("/v1/score", json={**body, "texts": ["ok no-number"]}).status_code == 500
        assert gateway.http.get("/no/such/path", headers={"traceparent": "nonsense"}).status_code == 404
        assert gateway.http.get("/healthz", headers=SENT).status_code == 200
        assert gateway.stop() == 0
    spans = receiver.of("scorer-http")
    served = [span for span in spans if span.kind == "SPAN_KIND_SERVER"]
    assert [(span.name, span.facts["http.response.status_code"], span.failed) for span in served] == [
        ("POST /v1/score", "200", False),
        ("POST /v1/score", "500", True),
        ("GET", "404", False),
    ]
    first = served[0]
    assert (first.trace, first.parent, first.facts["http.route"]) == (TRACE, SPAN, "/v1/score")
    assert served[1].trace != TRACE
    asked = {span.parent: span.name for span in spans if span.kind == "SPAN_KIND_CLIENT"}
    assert asked[first.id] == "sightline_scorer.v1.ScorerService/Score"


@pytest.mark.parametrize("kind", ["vllm", "tgi"])
def test_an_engine_is_sent_the_call_s_trace(kind: str, receiver: Receiver) -> None:
    mind = Mind(BASE)
    heard = Heard(VllmServer(mind).app if kind == "vllm" else TgiServer(mind, str(BASE)).app)
    with (
        serving_app(heard) as url,
        running(BASE, engine={"kind": kind, kind: {"url": url, "poll_seconds": 0.1}}) as at,
        SamplerClient(at.address, timeout=280) as client,
        traces.span("sample"),
    ):
        client.sample(IMAGE, PROMPT, 2, max_tokens=3)
    traces.end()
    (stage,) = (span for span in receiver.spans if span.name == "sample")
    (served,) = (span for span in receiver.spans if span.name.endswith("/Sample") and span.kind == "SPAN_KIND_SERVER")
    called = [span for span in receiver.spans if span.parent == served.id]
    posted = [path for path, header in heard.sent if header]
    assert "/v1/chat/completions" in posted or "/generate" in posted
    assert sorted(span.facts["url.path"] for span in called) == sorted(posted)
    assert {span.facts["sightline.engine"] for span in called} == {kind}
    assert not any(span.failed for span in called)
    assert {header for _, header in heard.sent if header} == {f"00-{stage.trace}-{span.id}-01" for span in called}
    assert [path for path, header in heard.sent if not header], "what only asks how it is has no trace"
