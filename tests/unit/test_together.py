"""Prompts go on to the scorer in groups; none waits for one that does not come."""

import asyncio
import functools
from collections.abc import Awaitable, Callable

import pytest
from sightline_trainer.together import Together


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    return run


async def answered(together: Together, gone: list[int], number: int, release: asyncio.Event) -> None:
    with together.on_the_way():
        await release.wait()
    await together()
    gone.append(number)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@in_a_loop
async def test_a_group_goes_when_it_is_full_and_not_before() -> None:
    together, gone, never = Together(size=3, seconds=60), [], asyncio.Event()
    events = [asyncio.Event() for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answered(together, gone, i, event)) for i, event in enumerate(events)]
        tasks.append(group.create_task(answered(together, gone, 9, never)))  # keeps somebody on the way
        await settled()
        events[0].set()
        events[1].set()
        await settled()
        assert gone == []
        events[2].set()
        await settled()
        assert sorted(gone) == [0, 1, 2]
        events[3].set()
        await settled()
        assert len(gone) == 3, "the next group has one"
        never.set()
        await settled()
        assert sorted(gone) == [0, 1, 2, 3, 9], "nobody else is on the way"


@in_a_loop
async def test_one_alone_does_not_wait() -> None:
    together, gone, now = Together(size=16, seconds=60), [], asyncio.Event()
    now.set()
    await asyncio.wait_for(answered(together, gone, 0, now), timeout=10)
    assert gone == [0]


@in_a_loop
async def test_a_group_that_does_not_fill_goes_after_a_while() -> None:
    together, gone, now, never = Together(size=16, seconds=0.01), [], asyncio.Event(), asyncio.Event()
    now.set()
    waiting = asyncio.create_task(answered(together, gone, 9, never))
    await asyncio.wait_for(answered(together, gone, 0, now), timeout=10)
    assert gone == [0]
    never.set()
    await asyncio.wait_for(waiting, timeout=10)


@in_a_loop
async def test_a_prompt_that_fails_on_the_way_holds_nobody() -> None:
    together, gone = Together(size=16, seconds=60), []
    now, fail = asyncio.Event(), asyncio.Event()

    async def failing() -> None:
        with together.on_the_way():
            await fail.wait()
            raise ValueError("damaged")

    broken = asyncio.create_task(failing())
    await settled()
    now.set()
    waiting = asyncio.create_task(answered(together, gone, 0, now))
    await settled()
    assert gone == []
    fail.set()
    with pytest.raises(ValueError, match="damaged"):
        await broken
    await asyncio.wait_for(waiting, timeout=10)
    assert gone == [0]


@in_a_loop
async def test_a_cancelled_one_does_not_keep_the_group() -> None:
    together, gone, now, never = Together(size=2, seconds=0.05), [], asyncio.Event(), asyncio.Event()
    now.set()
    other = asyncio.create_task(answered(together, gone, 9, never))
    await settled()
    cancelled = asyncio.create_task(answered(together, gone, 0, now))
    await settled()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await asyncio.wait_for(answered(together, gone, 1, now), timeout=10)
    assert gone == [1]
    never.set()
    await asyncio.wait_for(other, timeout=10)
