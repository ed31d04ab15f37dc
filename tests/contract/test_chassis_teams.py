"""Limits of teams over gRPC: a team that sends too much learns when to retry; the others are served."""

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from chassis_certificates import put
from chassis_probe import SCORER, Client, Probe, eventually, growth, probing
from sightline.errors import InvalidInput, Overloaded, SightlineError, from_rpc_error, typed_errors
from sightline_chassis.quota import Cost
from sightline_chassis.tokens import hash_of
from sightline_scorer.costs import of_score
from test_chassis_admission import health, scrape


@pytest.fixture(autouse=True)
def _costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "costs", {f"{SCORER}/Score": of_score})


def teams(path: Path, **limits: dict[str, int]) -> dict[str, Any]:
    """Settings of `auth` for teams whose tokens are their names."""
    tree = {name: {"tokens": [hash_of(name)], "limits": of} for name, of in limits.items()}
    put(path / "teams.yaml", yaml.safe_dump({"teams": tree}).encode())
    return {"tokens_file": path / "teams.yaml"}


async def outcome(call: Any) -> str:
    """OK, or the reason of the refusal."""
    try:
        await call
        return "OK"
    except Exception as error:
        return from_rpc_error(error).reason  # type: ignore[arg-type]


def test_a_team_has_its_own_bound_of_calls_in_flight(tmp_path: Path) -> None:
    async def main() -> None:
        auth = teams(tmp_path, vision={"concurrent": 2}, search={})
        async with (
            probing(auth=auth) as (probe, _, at),
            Client(at.grpc, token="vision") as vision,
            Client(at.grpc, token="search") as search,
        ):
            refusals = growth("sightline_team_refused_total")
            busy = [asyncio.ensure_future(vision.score("sleep 60")) for _ in range(2)]
            await eventually(lambda: probe.seen["sleep"] == 2)
            with pytest.raises(Overloaded) as caught, typed_errors():
                await vision.score("ok")
            assert (caught.value.reason, caught.value.retry_after) == ("TEAM_CONCURRENT", 1)
            await search.score("ok")
            assert refusals() == {"concurrent vision": 1}
            for call in busy:
                call.cancel()
            await eventually(lambda: probe.ended.count("sleep cancelled") == 2)
            await eventually_ok(vision)

    async def eventually_ok(client: Client) -> None:
        while await outcome(client.score("ok")) != "OK":
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_texts_and_images_of_a_minute(tmp_path: Path) -> None:
    async def main() -> None:
        auth = teams(tmp_path, vision={"texts_per_minute": 6}, search={"images_per_minute": 2})
        async with probing(auth=auth) as (probe, _, at):
            used = growth("sightline_team_units_total")
            async with Client(at.grpc, token="vision") as vision:
                with pytest.raises(InvalidInput), typed_errors():
                    await vision.score("ok", "0", *("x" * 5))
                await vision.score("ok", "0", "x")
                await vision.score("ok", "0", "x")
                with pytest.raises(Overloaded) as caught, typed_errors():
                    await vision.score("ok")
                assert caught.value.reason == "TEAM_TEXTS_PER_MINUTE"
                assert caught.value.retry_after is not None
                assert 5 < caught.value.retry_after <= 10  # six a minute: the next one is available in ten seconds
                await vision.upload("ok")  # costs nothing
            async with Client(at.grpc, token="search") as search:
                assert [await outcome(search.score("ok")) for _ in range(3)] == ["OK", "OK", "TEAM_IMAGES_PER_MINUTE"]
            assert used() == {"vision texts": 6, "vision images": 2, "search texts": 2, "search images": 2}
            assert probe.seen["ok"] == 5

    asyncio.run(main())


def test_a_raised_limit_holds_from_the_next_call_on(tmp_path: Path) -> None:
    async def main() -> None:
        auth = teams(tmp_path, vision={"texts_per_minute": 1})
        async with probing(auth=auth) as (_, _, at), Client(at.grpc, token="vision") as vision:
            assert [await outcome(vision.score("ok")) for _ in range(2)] == ["OK", "TEAM_TEXTS_PER_MINUTE"]
            teams(tmp_path, vision={"texts_per_minute": 100})
            assert await outcome(vision.score("ok")) == "OK"

    asyncio.run(main())


def test_the_metrics_know_the_teams_of_now(tmp_path: Path) -> None:
    async def main() -> None:
        auth = teams(tmp_path, leaver={"texts_per_minute": 1}, newcomer={})
        async with probing(auth=auth) as (_, _, at), Client(at.grpc, token="leaver") as client:
            assert [await outcome(client.score("ok")) for _ in range(2)] == ["OK", "TEAM_TEXTS_PER_MINUTE"]
            shown = await asyncio.to_thread(scrape, at.metrics)
            assert 'sightline_team_calls_total{grpc_code="OK",team="newcomer"} 0.0' in shown
            assert 'team="leaver"' in shown
            teams(tmp_path, newcomer={})
            while 'team="leaver"' in await asyncio.to_thread(scrape, at.metrics):
                await asyncio.sleep(0.1)

    asyncio.run(main())


def test_callers_without_tokens_share_their_limits() -> None:
    async def main() -> None:
        async with probing(auth={"anonymous_limits": {"texts_per_minute": 2}}) as (_, client, _):
            assert [await outcome(client.score("ok")) for _ in range(3)] == ["OK", "OK", "TEAM_TEXTS_PER_MINUTE"]

    asyncio.run(main())


def test_a_team_at_ten_times_its_limit_gets_its_limit_and_the_other_gets_all(tmp_path: Path) -> None:
    async def main() -> None:
        limit = 30
        auth = teams(tmp_path, flood={"texts_per_minute": limit, "concurrent": 8}, calm={})
        admission = {"max_concurrent": 4, "max_queue": 16}
        async with (
            probing(auth=auth, admission=admission) as (probe, _, at),
            Client(at.grpc, token="flood") as flood,
            Client(at.grpc, token="calm") as calm,
        ):
            start, flooded, stop = time.monotonic(), Counter[str](), asyncio.Event()

            async def flooding() -> None:
                while not stop.is_set():
                    flooded[await outcome(flood.score("flood"))] += 1

            floods = [asyncio.create_task(flooding()) for _ in range(16)]
            while sum(flooded.values()) < 10 * limit:
                assert await outcome(calm.score("calm")) == "OK"
                assert await asyncio.to_thread(health, at.health) == "SERVING"
            stop.set()
            await asyncio.gather(*floods)
            allowed = limit * (1 + (time.monotonic() - start) / 60)
            assert limit <= flooded["OK"] <= allowed
            assert probe.seen["flood"] == flooded["OK"]
            assert set(flooded) <= {"OK", "TEAM_TEXTS_PER_MINUTE", "TEAM_CONCURRENT"}
            assert sum(flooded.values()) >= 10 * limit

    asyncio.run(main())


def test_without_limits_a_flood_takes_its_share_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        admission = {"max_concurrent": 2, "max_queue": 10, "max_wait_seconds": 30}
        async with (
            probing(auth=teams(tmp_path, flood={}, calm={}), admission=admission) as (probe, _, at),
            Client(at.grpc, token="flood") as flood,
            Client(at.grpc, token="calm") as calm,
        ):
            stop = asyncio.Event()

            async def flooding() -> None:
                while not stop.is_set():
                    await outcome(flood.score("sleep 0.01"))

            floods = [asyncio.create_task(flooding()) for _ in range(40)]
            await eventually(lambda: probe.seen["sleep"] > 4)
            for _ in range(20):
                assert await outcome(calm.score("calm")) == "OK"  # though the queue is always full
            stop.set()
            await asyncio.gather(*floods)

    asyncio.run(main())


def test_a_stream_of_items_is_charged_item_by_item(tmp_path: Path) -> None:
    from sightline_chassis import gate

    async def main() -> None:
        auth = teams(tmp_path, vision={"texts_per_minute": 3})
        async with probing(auth=auth) as (probe, _, at), Client(at.grpc, token="vision") as vision:
            obey, spent = probe.obey, itertools.count()

            async def charged(order: str, context: Any) -> None:
                gate.charge(Cost(texts=1))
                next(spent)
                await obey(order, context)

            probe.obey = charged  # type: ignore[method-assign]
            with pytest.raises(SightlineError) as caught, typed_errors():
                assert [_ async for _ in vision.converse(*["ok"] * 5)]
            assert caught.value.reason == "TEAM_TEXTS_PER_MINUTE"
            assert next(spent) == 3

    asyncio.run(main())
