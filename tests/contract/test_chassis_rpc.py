"""The chassis' work around every RPC, over real channels."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from chassis_probe import SAMPLER, SCORER, Client, Probe, eventually, growth, probing
from prometheus_client import REGISTRY
from sightline.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    Overloaded,
    PreconditionFailed,
    SightlineError,
    Unavailable,
    Unsupported,
    typed_errors,
)
from sightline.sampler.v1 import sampler_pb2 as sampler
from sightline.scorer.v1 import scorer_pb2 as scorer

Order = Callable[[Client, str], Awaitable[Any]]


async def _unary(client: Client, order: str) -> Any:
    return await client.score(order)


async def _server_stream(client: Client, order: str) -> Any:
    return [message async for message in client.sample(order)]


async def _client_stream(client: Client, order: str) -> Any:
    return await client.upload("ok", order)


async def _bidi_stream(client: Client, order: str) -> Any:
    return [message async for message in client.converse("ok", order)]


KINDS = [(_unary, 1, 1), (_server_stream, 1, 2), (_client_stream, 2, 1), (_bidi_stream, 2, 2)]
kinds = pytest.mark.parametrize(("call", "received", "sent"), KINDS, ids=lambda v: getattr(v, "__name__", "")[1:])


async def codes(ends: Callable[[], dict[str, int]]) -> list[str]:
    """The codes of ended calls, once there is one (the server counts after the client has its answer)."""
    await eventually(ends)
    return [name.split()[0] for name, count in ends().items() for _ in range(count)]


def run(test: Callable[[Probe, Client], Awaitable[None]], **sections: Any) -> None:
    """Run the test against the probe."""

    async def main() -> None:
        async with probing(**sections) as (probe, client, _):
            await test(probe, client)

    asyncio.run(main())


@kinds
def test_a_call_of_every_kind_is_served_and_counted(call: Order, received: int, sent: int) -> None:
    async def test(probe: Probe, client: Client) -> None:
        series = {
            name: growth(f"grpc_server_{name}", grpc_type=call.__name__[1:])
            for name in ("started_total", "msg_received_total", "msg_sent_total", "handling_seconds_count")
        }
        ends = growth("grpc_server_handled_total", grpc_type=call.__name__[1:])
        await call(client, "ok")
        assert await codes(ends) == ["OK"]
        assert [sum(grown().values()) for grown in series.values()] == [1, received, sent, 1]

    run(test)


FAILURES: list[tuple[str, type[SightlineError], str, str, str]] = [
    ("refuse", InvalidInput, "InvalidArgument", "NO_SUCH_THING", "no such thing"),
    ("group", InvalidInput, "InvalidArgument", "NO_SUCH_THING", "no such thing"),
    ("away", Unavailable, "Unavailable", "UNAVAILABLE", "the backend is away"),
    ("bug", InternalError, "Internal", "INTERNAL", "internal error; the service's log has it under request id my-id"),
    ("full", Overloaded, "ResourceExhausted", "DISK_FULL", "the service's disk is full"),
    ("full-inside", Overloaded, "ResourceExhausted", "DISK_FULL", "the service's disk is full"),
    (
        "read-only",
        PreconditionFailed,
        "FailedPrecondition",
        "STORAGE_UNWRITABLE",
        "the service cannot use its files (Read-",
    ),
    ("cancelled", InternalError, "Internal", "INTERNAL", "internal error; the service's log"),
    ("abort", SightlineError, "Aborted", "ABORTED", "by hand"),
    ("abort-twice", SightlineError, "Aborted", "ABORTED", "by hand"),
    ("code", SightlineError, "OutOfRange", "OUT_OF_RANGE", "by code"),
    ("long", PreconditionFailed, "FailedPrecondition", "PRECONDITION_FAILED", "界" * 332 + "…"),
]


@kinds
def test_a_failure_of_every_kind_is_typed_and_counted(call: Order, received: int, sent: int) -> None:
    async def test(probe: Probe, client: Client) -> None:
        for order, cls, code, reason, message in FAILURES:
            ends = growth("grpc_server_handled_total", grpc_type=call.__name__[1:])
            with pytest.raises(SightlineError) as caught, typed_errors():
                await call(client.given(metadata=(("x-request-id", "my-id"),)), order)
            assert (order, type(caught.value), caught.value.reason) == (order, cls, reason)
            assert caught.value.message.startswith(message)
            assert "secret" not in str(vars(caught.value))
            assert (order, await codes(ends)) == (order, [code])

    run(test)


def test_an_error_has_its_details_and_the_request_id() -> None:
    async def test(probe: Probe, client: Client) -> None:
        with pytest.raises(InvalidInput) as caught, typed_errors():
            await client.given(metadata=(("x-request-id", "my-id"),)).score("refuse")
        assert caught.value.metadata == {"given": "x", "request_id": "my-id"}
        assert caught.value.retry_after is None
        with pytest.raises(Unavailable) as away, typed_errors():
            await client.score("away")
        assert away.value.retry_after == 0.3

    run(test)


def test_a_bug_is_in_the_log_and_only_there(caplog: pytest.LogCaptureFixture) -> None:
    async def test(probe: Probe, client: Client) -> None:
        with pytest.raises(InternalError), typed_errors():
            await client.score("bug")

    run(test)
    (record,) = [r for r in caplog.records if r.exc_info]
    assert record.getMessage() == f"{SCORER}/Score failed"
    assert record.exc_info is not None
    assert "a secret of the service" in str(record.exc_info[1])


def test_what_is_not_built_yet_is_unimplemented_but_a_bug_is_a_bug() -> None:
    async def test(probe: Probe, client: Client) -> None:
        with pytest.raises(Unsupported, match=r"ScorerService/ListModels is not implemented yet"), typed_errors():
            await client.scorer.ListModels(scorer.ListModelsRequest())
        with pytest.raises(InternalError), typed_errors():
            await client.sampler.GetPolicy(sampler.GetPolicyRequest())

    run(test)


@pytest.mark.parametrize("method", ["Score", "UploadImages", "ScoreStream"])
def test_bytes_that_are_no_message_are_invalid_input(method: str) -> None:
    async def test(probe: Probe, client: Client) -> None:
        path, garbage = f"/{SCORER}/{method}", b"\xff\xff\xff"
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "Score": lambda: client.channel.unary_unary(path)(garbage),
            "UploadImages": lambda: client.channel.stream_unary(path)(iter([garbage])),
            "ScoreStream": lambda: client.channel.stream_stream(path)(iter([garbage])).read(),
        }
        ends = growth("grpc_server_handled_total", grpc_method=method)
        with pytest.raises(InvalidInput) as caught, typed_errors():
            await calls[method]()
        assert caught.value.reason == "MALFORMED_REQUEST"
        assert await codes(ends) == ["InvalidArgument"]

    run(test)


def test_a_response_that_is_no_message_is_a_bug() -> None:
    async def test(probe: Probe, client: Client) -> None:
        with pytest.raises(InternalError), typed_errors():
            await client.score("wrong type")

    run(test)


def test_an_unknown_method_is_unimplemented() -> None:
    async def test(probe: Probe, client: Client) -> None:
        with pytest.raises(Unsupported), typed_errors():
            await client.channel.unary_unary(f"/{SCORER}/Nothing")(b"")

    run(test)


@kinds
def test_a_client_that_cancels_is_counted_as_such_and_its_handler_ends(call: Order, received: int, sent: int) -> None:
    async def test(probe: Probe, client: Client) -> None:
        ends = growth("grpc_server_handled_total", grpc_type=call.__name__[1:])
        task = asyncio.ensure_future(call(client.given(timeout=60), "sleep 60"))
        await eventually(lambda: probe.seen["sleep"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await codes(ends) == ["Canceled"]
        assert "sleep cancelled" in probe.ended

    run(test)


@kinds
def test_a_deadline_is_counted_as_such(call: Order, received: int, sent: int) -> None:
    async def test(probe: Probe, client: Client) -> None:
        ends = growth("grpc_server_handled_total", grpc_type=call.__name__[1:])
        with pytest.raises(DeadlineExceeded), typed_errors():
            await call(client.given(timeout=0.25), "sleep 60")
        assert await codes(ends) == ["DeadlineExceeded"]
        assert "sleep cancelled" in probe.ended

    run(test)


def test_a_generator_whose_reader_left_is_closed_at_once() -> None:
    async def test(probe: Probe, client: Client) -> None:
        ends = growth("grpc_server_handled_total", grpc_service=SAMPLER)
        call = client.sample("ok", count=1_000_000)
        await call.read()  # the rest does not fit in the window: the handler waits in a write
        await asyncio.sleep(0.1)
        call.cancel()
        assert await codes(ends) == ["Canceled"]
        assert "generator closed" in probe.ended

    run(test)


def test_a_closed_channel_cancels_its_calls() -> None:
    async def test(probe: Probe, client: Client) -> None:
        call = asyncio.ensure_future(client.score("sleep 60"))
        await eventually(lambda: probe.seen["sleep"])
        await client.channel.close()
        with pytest.raises((asyncio.CancelledError, Cancelled)), typed_errors():
            await call
        await eventually(lambda: "sleep cancelled" in probe.ended)

    run(test)


def test_the_request_id_goes_round() -> None:
    async def test(probe: Probe, client: Client) -> None:
        request = scorer.FindMissingImagesRequest()
        for given, kept in [("train-7/step:3", True), ("", False), ("x" * 129, False), ('a"b\\', False)]:
            call = client.scorer.FindMissingImages(request, metadata=(("x-request-id", given),))
            inside = (await call).sha256[0].decode()
            assert dict(await call.trailing_metadata())["x-request-id"] == inside
            assert (inside == given) is kept
            assert inside

    run(test)


def test_a_stream_tells_its_request_id_with_the_first_message() -> None:
    async def test(probe: Probe, client: Client) -> None:
        call = client.given(metadata=(("x-request-id", "early"),)).sample("sleep 60")
        await call.read()
        assert dict(await call.initial_metadata())["x-request-id"] == "early"
        call.cancel()

    run(test)


def test_one_line_of_log_for_each_failed_call(caplog: pytest.LogCaptureFixture) -> None:
    async def test(probe: Probe, client: Client) -> None:
        await client.score("ok")
        with pytest.raises(grpc.RpcError):
            await client.score("refuse")

    caplog.set_level(logging.INFO)
    run(test)
    (record,) = [r for r in caplog.records if r.name == "sightline_chassis.calls"]
    assert record.getMessage() == f"{SCORER}/Score InvalidArgument"
    assert json.dumps(record.details) == '"no such thing"'  # type: ignore[attr-defined]


def test_every_method_and_code_is_there_before_the_first_call() -> None:
    async def test(probe: Probe, client: Client) -> None:
        labels = {"grpc_type": "server_stream", "grpc_service": SAMPLER, "grpc_method": "Sample"}
        for code in ("OK", "Canceled", "InvalidArgument", "DeadlineExceeded", "Unauthenticated", "DataLoss"):
            assert REGISTRY.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": code}) is not None

    run(test)
