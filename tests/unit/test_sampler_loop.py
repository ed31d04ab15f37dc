"""The decoding thread after a fault: no caller waits forever, and the thread continues."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sightline.errors import InternalError, Unavailable
from sightline_sampler.engines.local.fair_queue import FairQueue
from sightline_sampler.engines.local.loop import DecodeLoop, _Run
from sightline_sampler.engines.local.rows import Request


def loop() -> DecodeLoop:
    parts: Any = SimpleNamespace(slot_bytes=0)
    return DecodeLoop(parts, parts, parts, events=asyncio.get_running_loop(), max_rows=8, cache_bytes=1 << 20)


def request(asker: str = "") -> Request:
    work: Any = SimpleNamespace(seeds=[1], deadline=None, asker=asker)
    prepared: Any = None
    return Request(work, prepared, 4, asyncio.Queue())


def test_a_call_that_was_cancelled_hides_no_end_from_the_others() -> None:
    async def run() -> None:
        decode, one = loop(), request()
        left, waited = decode.call(lambda: 1), decode.call(lambda: 2)
        decode.submit(one)
        left.cancel()
        decode._stopping = True
        decode.start()
        decode.stop()
        assert isinstance(await asyncio.wait_for(one.events.get(), 5), Unavailable)
        with pytest.raises(Unavailable):
            waited.result(0)

    asyncio.run(run())


def test_what_is_left_of_a_prompt_that_finds_no_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        decode, one = loop(), request()
        prefix: Any = None
        decode._half.append(_Run(one, prefix, 0, owned=True))

        def join(*_: Any) -> int:
            raise MemoryError

        monkeypatch.setattr(decode, "_join", join)
        decode._admit()
        assert isinstance(await asyncio.wait_for(one.events.get(), 5), InternalError)

    asyncio.run(run())


def test_those_who_wait_take_turns_and_each_is_served_in_order() -> None:
    async def run() -> None:
        queue = FairQueue()
        red, blue, green = ([request(name) for _ in range(4)] for name in ("red", "blue", "green"))
        for one in (*red, *blue[:2]):
            queue.append(one)
        assert queue.next() is red[0]
        assert [queue.take() for _ in range(3)] == [red[0], blue[0], red[1]]
        queue.append(green[0])
        queue.remove(red[2])
        assert (len(queue), len(list(queue))) == (3, 3)
        assert [queue.take() for _ in range(4)] == [blue[1], red[3], green[0], None]
        assert not queue
        assert queue.next() is None

    asyncio.run(run())
