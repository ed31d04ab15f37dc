"""The channel that clients open: retries, limits, balancing, loopback."""

import asyncio
import time
from typing import Any

import pytest
from chassis_probe import SAMPLER, SCORER, Client, eventually, probing
from sightline.channel import open_channel
from sightline.errors import DeadlineExceeded, InternalError, InvalidInput, Unavailable, typed_errors
from sightline.scorer.v1 import scorer_pb2, scorer_pb2_grpc

RETRY = (f"{SCORER}/Score", f"{SAMPLER}/Sample")


async def _all(call: Any) -> list[Any]:
    return [message async for message in call]


def test_unavailable_is_tried_again_where_asked_for() -> None:
    async def main() -> None:
        async with probing() as (probe, plain, at), Client(at.grpc, retry=RETRY) as client:
            await client.score("flaky 2", "0", "x" * (1 << 20))  # also with a request over gRPC's usual retry buffer
            assert probe.seen.pop("flaky") == 2
            await client.sample("flaky 3", count=0).read()  # a stream that fails before its first message
            assert probe.seen.pop("flaky") == 3
            for never in (
                lambda: plain.score("flaky 9"),  # not asked for
                lambda: client.upload("flaky 9"),
                lambda: _all(client.sample("flaky 9", count=1)),  # a message has arrived: too late
            ):
                with pytest.raises(Unavailable), typed_errors():
                    await never()
                assert probe.seen.pop("flaky") == 1
            with pytest.raises(Unavailable), typed_errors():
                await client.score("flaky 99")
            assert probe.seen.pop("flaky") == 5  # gRPC's own limit
            with pytest.raises(InternalError), typed_errors():
                await client.score("bug")
            assert probe.seen["bug"] == 1

    asyncio.run(main())


def test_a_retry_waits_as_long_as_the_service_says() -> None:
    async def main() -> None:
        async with probing() as (probe, _, at), Client(at.grpc, retry=RETRY) as client:
            start = time.monotonic()
            with pytest.raises(DeadlineExceeded), typed_errors():
                await client.given(timeout=0.75).score("away")  # retry_after is 0.3 s: tries at 0, 0.3 and 0.6 s
            assert time.monotonic() - start < 1.5
            assert probe.seen["away"] == 3

    asyncio.run(main())


def test_large_messages_pass_and_larger_ones_are_explained() -> None:
    async def main() -> None:
        async with probing(server={"max_message_mib": 9}) as (_, client, _):
            reply = await client.score("ok", str(8 << 20), "x" * (8 << 20))
            assert len(reply.image_sha256) == 8 << 20
            with pytest.raises(InvalidInput, match="larger than max") as caught, typed_errors():
                await client.score("ok", "0", "x" * (9 << 20))
            assert caught.value.reason == "MESSAGE_TOO_LARGE"

    asyncio.run(main())


def test_a_server_that_leaves_is_not_missed_by_a_balanced_client() -> None:
    async def main() -> None:
        async with probing() as (first, _, here):
            async with probing(server={"notice_seconds": 0.3}) as (second, _, there):
                target = f"ipv4:{here.grpc},{there.grpc}"
                client = Client(target, health_service=SCORER)
                while not (first.seen["ok"] and second.seen["ok"]):
                    await client.given(timeout=5).score("ok")
                slow = [asyncio.ensure_future(client.score("sleep 0.6")) for _ in range(4)]
                await eventually(lambda: second.seen["sleep"] == 2)
            # The second one has drained: its slow calls came through, and new ones go to the first.
            await asyncio.gather(*slow)
            before = first.seen["ok"]
            for _ in range(20):
                await client.score("ok")
            assert first.seen["ok"] == before + 20
            await client.channel.close()

    asyncio.run(main())


def test_a_service_that_comes_back_is_found_within_seconds() -> None:
    async def main() -> None:
        async with probing() as (_, _, at):
            pass
        async with Client(at.grpc) as client:
            for _ in range(3):
                with pytest.raises(Unavailable, match="refused"), typed_errors():
                    await client.given(timeout=5).score("ok")
                await asyncio.sleep(0.3)
            async with probing(server={"port": int(at.grpc.rpartition(":")[2])}):
                start = time.monotonic()
                await client.given(timeout=20, wait_for_ready=True).score("ok")
                assert time.monotonic() - start < 8

    asyncio.run(main())


def test_loopback_does_not_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)

    async def main() -> None:
        async with probing() as (_, client, _):
            await client.given(timeout=5).score("ok")

    asyncio.run(main())


def test_sync_stubs_get_the_same() -> None:
    def ask(target: str) -> None:
        with open_channel(target, retry=RETRY) as channel:
            stub = scorer_pb2_grpc.ScorerServiceStub(channel)
            stub.Score(scorer_pb2.ScoreRequest(texts=["flaky 2"]))
            with pytest.raises(InvalidInput) as caught, typed_errors():
                stub.Score(scorer_pb2.ScoreRequest(texts=["refuse"]))
            assert caught.value.reason == "NO_SUCH_THING"
            with pytest.raises(InvalidInput), typed_errors():
                list(stub.ScoreStream(iter([scorer_pb2.ScoreStreamRequest(request={"texts": ["refuse"]})])))

    async def main() -> None:
        async with probing() as (_, _, at):
            await asyncio.to_thread(ask, at.grpc)

    asyncio.run(main())


def test_a_retry_needs_a_method() -> None:
    with pytest.raises(ValueError, match="argument"):
        open_channel("127.0.0.1:1", retry=["Score"])
