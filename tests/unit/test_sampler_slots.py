"""How many requests an engine gets at a time."""

import asyncio

import pytest
from sightline_sampler.engines.remote.request_limit import RequestLimit


def test_never_more_than_the_limit_and_first_come_first_served() -> None:
    async def run() -> None:
        slots, order, most, now = RequestLimit(3), list[int](), 0, 0

        async def work(number: int, count: int) -> None:
            nonlocal most, now
            async with slots.taken(count):
                order.append(number)
                now += count
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= count

        await asyncio.gather(*(work(number, 1 + number % 3) for number in range(30)))
        assert order == list(range(30))
        assert most == 3

    asyncio.run(run())


def test_one_that_is_too_large_runs_alone_and_one_that_gives_up_leaves_no_hole() -> None:
    async def run() -> None:
        slots = RequestLimit(2)
        async with slots.taken(5):
            waiting = [asyncio.create_task(_hold(slots)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiting[1], 1)
        assert await asyncio.wait_for(waiting[2], 1)
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        async with asyncio.timeout(1), slots.taken(2):
            pass

    asyncio.run(run())


def test_one_that_gives_up_lets_those_behind_it_have_what_is_free() -> None:
    async def run() -> None:
        slots = RequestLimit(3)
        async with slots.taken(2):
            large, small = asyncio.create_task(_hold(slots)), asyncio.create_task(_hold(slots, 1))
            await asyncio.sleep(0)
            large.cancel()
            assert await asyncio.wait_for(small, 1)

    asyncio.run(run())


async def _hold(slots: RequestLimit, count: int = 2) -> bool:
    async with slots.taken(count):
        return True
