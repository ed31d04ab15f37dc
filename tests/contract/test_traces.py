"""Traces: the spans of both sides of a call form one trace, which the logs name; without the setting there are none."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from chassis_probe import probing
from otlp_receiver import Receiver, receiving
from sightline import channel
from sightline.errors import PreconditionFailed
from sightline_chassis import logs, traces
from sightline_chassis.sections import LogSettings, TraceSettings

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = [("traceparent", f"00-{TRACE}-{SPAN}-01")]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver of this process's spans."""
    monkeypatch.setattr(channel, "_tracers", [])
    with receiving() as found:
        traces.begin(TraceSettings(endpoint=found.endpoint), "probe")
        yield found
        traces.end()


def test_caller_and_callee_are_of_one_trace(receiver: Receiver) -> None:
    async def main() -> None:
        async with probing() as (_, client, _):
            with traces.span("sample", iteration=3):
                await client.score("ok")
                assert [each async for each in client.sample("ok")]
                await client.upload("ok")
                assert [each async for each in client.converse("ok", "ok")]

    asyncio.run(main())
    traces.end()
    (top,) = (span for span in receiver.spans if span.name == "sample")
    assert (top.parent, top.facts) == ("", {"iteration": "3"})
    assert {span.trace for span in receiver.spans} == {top.trace}
    callers = [span for span in receiver.spans if span.kind == "SPAN_KIND_CLIENT"]
    callees = {span.parent: span for span in receiver.spans if span.kind == "SPAN_KIND_SERVER"}
    assert len(callers) == len(callees) == 4
    for caller in callers:
        assert caller.parent == top.id
        assert callees[caller.id].name == caller.name
        assert callees[caller.id].facts["rpc.grpc.status_code"] == "0"


def test_a_fault_is_the_server_s_and_a_bad_request_is_not(receiver: Receiver) -> None:
    async def main() -> None:
        async with probing() as (_, client, _):
            for order in ("bug", "refuse"):
                with pytest.raises(grpc.RpcError):
                    await client.score(order)

    asyncio.run(main())
    traces.end()
    served = [span for span in receiver.spans if span.kind == "SPAN_KIND_SERVER"]
    assert sorted((span.facts["rpc.grpc.status_code"], span.failed) for span in served) == [("13", True), ("3", False)]
    assert all(span.failed for span in receiver.spans if span.kind == "SPAN_KIND_CLIENT")


def test_a_caller_s_trace_goes_on_and_what_it_does_not_keep_is_not_kept(receiver: Receiver) -> None:
    async def main() -> None:
        async with probing() as (_, client, _):
            await client.given(metadata=SENT).score("ok")
            await client.given(metadata=[("traceparent", SENT[0][1][:-1] + "0")]).score("ok")
            await client.given(metadata=[("traceparent", "nonsense")]).score("ok")

    # The client has no tracer, whose own header would come second.
    channel._tracers.clear()
    asyncio.run(main())
    traces.end()
    assert [(span.trace == TRACE, span.parent) for span in receiver.spans] == [(True, SPAN), (False, "")]


def test_work_for_several_requests_is_linked_to_all(receiver: Receiver) -> None:
    with traces.span("one"):
        first = traces.here()
    with traces.span("two"):
        second = traces.here()
    with traces.joined("batch", [None, first, second, first]):
        sent = traces.headers()
    traces.end()
    one, two, batch = receiver.spans
    assert (batch.trace, batch.parent, batch.links) == (one.trace, one.id, (two.id,))
    assert sent == {"traceparent": f"00-{one.trace}-{batch.id}-01"}


def test_a_share_of_the_traces_is_kept() -> None:
    with receiving() as receiver:
        traces.begin(TraceSettings(endpoint=receiver.endpoint, ratio=0), "probe")
        with traces.span("sample"):
            assert traces.headers() == {}
        traces.end()
        assert receiver.spans == []


def test_while_it_is_off_the_caller_s_trace_is_in_the_logs(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logs.JsonFormatter("probe").format(record))

    async def main() -> None:
        async with probing() as (_, client, _):
            for metadata in (SENT, [("traceparent", "nonsense")], []):
                with pytest.raises(grpc.RpcError):
                    await client.given(metadata=metadata).score("refuse")

    keep = Keep()
    logger = logging.getLogger("sightline_chassis.calls")
    logger.addHandler(keep)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            asyncio.run(main())
    finally:
        logger.removeHandler(keep)
    assert [json.loads(line).get("trace_id") for line in lines] == [TRACE, None, None]
    assert LogSettings().format == "json"


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    code = (
        "import sys, asyncio\n"
        "from sightline_chassis import traces, server, process\n"
        "from sightline_chassis.sections import TraceSettings\n"
        "traces.begin(TraceSettings(), 'x')\n"
        "with traces.span('a'), traces.joined('b', [traces.here()]): assert traces.headers() == {}\n"
        "traces.end()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(PreconditionFailed, match=re.escape("pip install 'sightline[traces]'")):
        traces.begin(TraceSettings(endpoint="http://127.0.0.1:9"), "probe")
