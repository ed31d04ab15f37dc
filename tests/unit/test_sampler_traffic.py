"""The door: which calls wait, which count, and which are cancelled."""

import asyncio

import pytest
from sightline import Unavailable
from sightline_sampler.traffic import Traffic


async def _request(traffic: Traffic, seconds: float, *, between: float = 0.0) -> str:
    async with traffic.passage() as visit:
        await asyncio.sleep(between)  # a slow reader makes a stream wait; it must not be cancelled there
        return await visit.wait(asyncio.sleep(seconds, "done"))


def test_requests_wait_at_a_closed_door_and_no_longer_than_they_may() -> None:
    async def run() -> None:
        traffic = Traffic(0.2)
        assert traffic.close("swap") == 0
        waiting = asyncio.create_task(_request(traffic, 0))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        traffic.close("pause")
        traffic.open("swap")
        await asyncio.sleep(0.02)
        assert not waiting.done(), "the pause holds the door, too"
        traffic.open("pause")
        assert await waiting == "done"
        traffic.close("pause")
        with pytest.raises(Unavailable, match="paused") as error:
            await _request(traffic, 0)
        assert error.value.retry_after

    asyncio.run(run())


def test_idle_is_when_all_have_left() -> None:
    async def run() -> None:
        traffic = Traffic(1)
        requests = [asyncio.create_task(_request(traffic, 0.01 * i)) for i in range(4)]
        await asyncio.sleep(0)
        assert traffic.close("swap") == 4
        await traffic.idle()
        assert all(request.done() for request in requests)

    asyncio.run(run())


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_an_abort_breaks_off_where_the_engine_is_waited_for(between: float) -> None:
    async def run() -> None:
        traffic = Traffic(1)
        request = asyncio.create_task(_request(traffic, 60, between=between))
        await asyncio.sleep(0.02)
        traffic.close("pause")
        traffic.abort()
        traffic.abort()  # once is enough
        with pytest.raises(Unavailable, match="interrupted by a pause"):
            await asyncio.wait_for(request, 1)
        await traffic.idle()

    asyncio.run(run())


def test_a_caller_that_goes_away_is_no_pause() -> None:
    async def run() -> None:
        traffic = Traffic(1)
        gone, both = (asyncio.create_task(_request(traffic, 60)) for _ in range(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        traffic.abort()
        both.cancel()
        with pytest.raises(asyncio.CancelledError):
            await both
        await traffic.idle()

    asyncio.run(run())
