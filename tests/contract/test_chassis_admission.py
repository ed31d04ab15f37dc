"""Admission and health of a service under load: which calls are refused, and how."""

import asyncio
import time
import urllib.request
from typing import Any

import grpc
import pytest
from chassis_probe import SAMPLER, SCORER, eventually, growth, probing
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sightline.errors import Overloaded, typed_errors
from sightline.scorer.v1 import scorer_pb2 as scorer

SMALL = {"max_concurrent": 2, "max_queue": 1, "max_wait_seconds": 60, "retry_after_seconds": 0.7}


def health(address: str, service: str = "") -> str:
    """The status by grpc.health.v1, asked with a short deadline."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def scrape(address: str) -> str:
    """The text of /metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
        return reply.read().decode()  # type: ignore[no-any-return]


def test_a_full_service_refuses_with_retry_info_and_keeps_its_health() -> None:
    async def main() -> None:
        async with probing(admission=SMALL) as (probe, client, at):
            ends = growth("grpc_server_handled_total", grpc_method="Score")
            rejected = growth("sightline_rejected_total")
            busy = [asyncio.ensure_future(client.score("sleep 60")) for _ in range(3)]
            await eventually(lambda: "sightline_queue_depth 1.0" in scrape(at.metrics))
            assert "sightline_inflight_requests 2.0" in scrape(at.metrics)
            assert probe.seen["sleep"] == 2
            for call in (client.score("ok"), client.upload("ok")):
                with pytest.raises(Overloaded) as caught, typed_errors():
                    await call
                assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 0.7)
            assert probe.seen["ok"] == 0
            assert rejected() == {"queue_full": 2}
            assert {name.split()[0]: count for name, count in ends().items()} == {"ResourceExhausted": 1}
            # Never refused: health on both ports, reflection, and the methods that the service declares.
            for address in (at.health, at.grpc):
                assert await asyncio.to_thread(health, address) == "SERVING"
            assert SCORER in await _reflected(client.channel)
            await client.scorer.FindMissingImages(scorer.FindMissingImagesRequest())
            for call in busy:
                call.cancel()
            await eventually(lambda: probe.ended.count("sleep cancelled") == probe.seen["sleep"])
            await client.score("ok")
            await eventually(lambda: "sightline_inflight_requests 0.0" in scrape(at.metrics))
            assert "sightline_queue_depth 0.0" in scrape(at.metrics)

    asyncio.run(main())


async def _reflected(channel: grpc.aio.Channel) -> list[str]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    return [service.name for service in (await call.read()).list_services_response.service]


def test_reflection_lists_the_services_unless_switched_off() -> None:
    async def main() -> None:
        async with probing() as (_, client, _):
            assert {SCORER, SAMPLER, "grpc.health.v1.Health"} <= set(await _reflected(client.channel))
        async with probing(server={"reflection": False}) as (_, client, _):
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                await _reflected(client.channel)

    asyncio.run(main())


def test_who_waits_gets_the_next_turn_in_order() -> None:
    async def main() -> None:
        async with probing(admission=SMALL | {"max_concurrent": 1, "max_queue": 9}) as (probe, client, _):
            calls = []
            for word in ("sleep 0.1", "a", "b", "c"):
                calls.append(asyncio.ensure_future(client.score(word)))
                await asyncio.sleep(0.01)
            await asyncio.gather(*calls)
            assert probe.ended == ["sleep done", "a done", "b done", "c done"]

    asyncio.run(main())


def test_a_wait_that_is_too_long_is_refused() -> None:
    async def main() -> None:
        async with probing(admission=SMALL | {"max_concurrent": 1, "max_wait_seconds": 0.1}) as (probe, client, _):
            busy = asyncio.ensure_future(client.score("sleep 60"))
            await eventually(lambda: probe.seen["sleep"])
            waits = growth("sightline_queue_wait_seconds_count")
            with pytest.raises(Overloaded, match=r"no turn within 0\.1 s") as caught, typed_errors():
                await client.score("ok")
            assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_TIMEOUT", 0.7)
            assert waits() == {"": 1}
            busy.cancel()

    asyncio.run(main())


def test_who_gives_up_waiting_leaves_the_queue() -> None:
    async def main() -> None:
        async with probing(admission=SMALL | {"max_concurrent": 1}) as (probe, client, _):
            busy = asyncio.ensure_future(client.score("sleep 60"))
            await eventually(lambda: probe.seen["sleep"])
            for _ in range(3):  # the queue has one place: a second call is refused while the first is there
                with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                    await client.given(timeout=0.1).score("ok")
                await asyncio.sleep(0.05)
            busy.cancel()
            await client.score("ok")

    asyncio.run(main())


def test_a_flood_leaves_no_turn_taken() -> None:
    async def main() -> None:
        async with probing(admission=SMALL | {"max_queue": 20}) as (_, client, at):
            calls = [asyncio.ensure_future(client.given(timeout=0.3).score("sleep 0.02")) for _ in range(200)]
            for call in calls[::3]:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) > 0
            await eventually(lambda: "sightline_inflight_requests 0.0" in scrape(at.metrics))
            await asyncio.gather(client.score("ok"), client.score("ok"))

    asyncio.run(main())


def test_a_blocked_event_loop_is_told_by_health_and_metrics_still_answer() -> None:
    async def main() -> None:
        async with probing(server={"liveness_seconds": 0.4}) as (_, client, at):
            assert await asyncio.to_thread(health, at.health, "liveness") == "SERVING"
            lag = growth("sightline_event_loop_lag_seconds_bucket", le="0.5")
            late = growth("sightline_event_loop_lag_seconds_bucket", le="+Inf")
            found = asyncio.get_running_loop().run_in_executor(None, _watch_a_blocked_loop, at.health, at.metrics)
            await client.score("block 1.5")
            slow, statuses = await found
            assert slow < 0.5
            assert statuses == {"liveness": "NOT_SERVING", "readiness": "SERVING"}
            await eventually(lambda: health_soon(at.health) == "SERVING")
            await eventually(lambda: sum(late().values()) > sum(lag().values()))  # one lag was over half a second

    def health_soon(address: str) -> str:
        return health(address, "liveness")

    asyncio.run(main())


def test_what_only_a_restart_mends_is_told_by_liveness() -> None:
    async def main() -> None:
        async with probing(server={"liveness_seconds": 0.5}) as (probe, _, at):
            assert await asyncio.to_thread(health, at.health, "liveness") == "SERVING"
            probe.beyond_help = "the thread that does the work has died"
            await eventually(lambda: health(at.health, "liveness") == "NOT_SERVING")
            probe.beyond_help = None
            await eventually(lambda: health(at.health, "liveness") == "SERVING")

    asyncio.run(main())


def _watch_a_blocked_loop(address: str, metrics: str) -> tuple[float, dict[str, str]]:
    time.sleep(0.9)
    start = time.monotonic()
    statuses = {name: health(address, name) for name in ("liveness", "readiness")}
    scrape(metrics)
    return time.monotonic() - start, statuses


def test_readiness_follows_the_service() -> None:
    async def main() -> None:
        async with probing() as (probe, client, at):
            names = ("", "readiness", SCORER, SAMPLER)
            for why in ("the backend is away", "raise", None):
                probe.why = why
                wanted = "SERVING" if why is None else "NOT_SERVING"
                await eventually(lambda wanted=wanted: health(at.health, "") == wanted)
                assert {health(at.health, name) for name in names} == {wanted}
                assert health(at.health, "startup") == health(at.health, "liveness") == "SERVING"
                # The service's own port answers from the event loop, so the test asks that port.
                stub = health_pb2_grpc.HealthStub(client.channel)
                reply: Any = await stub.Check(health_pb2.HealthCheckRequest(service=SCORER))
                assert health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status) == wanted
            with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
                health(at.health, "nobody")

    asyncio.run(main())


def test_health_is_watched_beside_the_service_and_only_checked_on_its_own_port() -> None:
    async def main() -> None:
        async with probing() as (probe, client, at):
            stub = health_pb2_grpc.HealthStub(client.channel)
            watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", SCORER, "nobody")]
            serving, not_serving, unknown = 1, 2, 3
            assert [(await watch.read()).status for watch in watches] == [serving, serving, unknown]
            probe.why = "away"
            assert [(await watch.read()).status for watch in watches[:2]] == [not_serving, not_serving]
            async with grpc.aio.insecure_channel(at.health) as channel:
                with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                    await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
            start = time.monotonic()
        assert time.monotonic() - start < 1  # open watches do not delay the drain

    asyncio.run(main())
