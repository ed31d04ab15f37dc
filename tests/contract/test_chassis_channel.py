"""The channel that clients open: retries, limits, balancing, loopback."""

import asyncio
import time
from dataclasses import replace

import pytest
from chassis_probe import SCORER, Client, eventually, probing
from sightline import (
    AsyncRunClient,
    AsyncSamplerClient,
    AsyncScorerClient,
    Patience,
    RunClient,
    SamplerClient,
    ScorerClient,
)
from sightline.channel import open_channel
from sightline.errors import InternalError, InvalidInput, Unavailable, typed_errors
from sightline.patience import Tries
from sightline.scorer.v1 import scorer_pb2, scorer_pb2_grpc


def test_grpc_tries_nothing_again() -> None:
    """Only the client's patience retries a call."""

    async def main() -> None:
        async with probing() as (probe, client, _):
            for ask in (
                lambda: client.score("flaky 9"),
                lambda: client.sample("flaky 9", count=0).read(),
                lambda: client.upload("flaky 9"),
            ):
                with pytest.raises(Unavailable), typed_errors():
                    await ask()
                assert probe.seen.pop("flaky") == 1

    asyncio.run(main())


def test_unavailable_is_tried_again_by_the_client_s_patience() -> None:
    async def main() -> None:
        async with probing() as (probe, client, _):
            patience = Patience(first_delay=0.01, max_delay=0.02)
            large = "x" * (1 << 20)  # also a request over gRPC's usual retry buffer
            await Tries(patience, 30).acall(lambda seconds: client.given(timeout=seconds).score("flaky 7", "0", large))
            assert probe.seen.pop("flaky") == 7  # more than gRPC's own five
            with pytest.raises(Unavailable) as caught:
                await Tries(replace(patience, tries=3), 30).acall(lambda _: client.score("flaky 99"))
            assert probe.seen.pop("flaky") == 3
            assert caught.value.metadata["tries"] == "3"
            with pytest.raises(InternalError):
                await Tries(patience, 30).acall(lambda _: client.score("bug"))
            assert probe.seen["bug"] == 1

    asyncio.run(main())


def test_a_retry_waits_as_long_as_the_service_says() -> None:
    async def main() -> None:
        async with probing() as (probe, client, _):
            start = time.monotonic()
            with pytest.raises(Unavailable):
                # retry_after is 0.3 s, and a wait up to a quarter longer: tries at 0, 0.3 and 0.6 s
                await Tries(Patience(), 0.8).acall(lambda seconds: client.given(timeout=seconds).score("away"))
            assert time.monotonic() - start < 1.5
            assert 2 <= probe.seen["away"] <= 3

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
            # The second one has drained: its slow calls finished, and new ones go to the first.
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
        with open_channel(target) as channel:
            stub = scorer_pb2_grpc.ScorerServiceStub(channel)
            stub.Score(scorer_pb2.ScoreRequest(texts=["ok"]))
            with pytest.raises(InvalidInput) as caught, typed_errors():
                stub.Score(scorer_pb2.ScoreRequest(texts=["refuse"]))
            assert caught.value.reason == "NO_SUCH_THING"
            with pytest.raises(InvalidInput), typed_errors():
                list(stub.ScoreStream(iter([scorer_pb2.ScoreStreamRequest(request={"texts": ["refuse"]})])))

    async def main() -> None:
        async with probing() as (_, _, at):
            await asyncio.to_thread(ask, at.grpc)

    asyncio.run(main())


@pytest.mark.parametrize(
    "target",
    [
        "", ":50051", "scorer", "scorer:", "scorer:http", "scorer:0", "scorer:65536", "scorer:50051/", "http://scorer:50051",
        "https://scorer:50051/", "grpc://scorer:50051", "::1:50051", "[::1]", "a:1,b:2", "sco rer:50051", "dns:///scorer",
        "dns:///:50051", "dns:scorer", "ipv4:10.0.0.1", "ipv4:10.0.0.1:1,", "ipv6:::1:1", "unix:", "unix://", "xds:///",
        "user@scorer:50051", "//scorer:50051",
    ],
)  # fmt: skip
def test_a_malformed_target_is_refused_at_once(target: str) -> None:
    with pytest.raises(InvalidInput, match=r"host:port") as caught:
        open_channel(target)
    assert caught.value.reason == "TARGET_MALFORMED"
    for client in (RunClient, SamplerClient, ScorerClient):
        with pytest.raises(InvalidInput) as caught:
            client(target)
        assert caught.value.reason == "TARGET_MALFORMED"

    async def main() -> None:
        for client in (AsyncRunClient, AsyncSamplerClient, AsyncScorerClient):
            with pytest.raises(InvalidInput) as caught:
                client(target)
            assert caught.value.reason == "TARGET_MALFORMED"

    asyncio.run(main())


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:50051", "localhost:1", "scorer.ns.svc:65535", "my_scorer-0:50051", "[::1]:50051", "[fe80::1%eth0]:1",
        "dns:///scorer:50051", "dns:scorer:50051", "dns://8.8.8.8/scorer:50051", "dns:///[::1]:50051",
        "ipv4:10.0.0.1:1,10.0.0.2:2", "ipv6:[::1]:1,[::1]:2", "unix:/run/scorer.sock", "unix:///run/scorer.sock",
        "unix:scorer.sock", "unix-abstract:scorer", "xds:///scorer",
    ],
)  # fmt: skip
def test_a_target_of_grpc_is_taken(target: str) -> None:
    open_channel(target).close()
