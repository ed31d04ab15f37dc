"""Many items in order, sync and async: what ends the iteration, how far it reads ahead, what it leaves running."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from sightline.many import Live, count_of, in_order, in_order_async


def by_threads(items: Iterable[int], run: Callable[[int], Any], prepare: Callable[[list[int]], Any], **how: Any) -> Any:
    return list(in_order(items, lambda item, _: run(item), prepare=prepare, **how))


def by_tasks(items: Iterable[int], run: Callable[[int], Any], prepare: Callable[[list[int]], Any], **how: Any) -> Any:
    async def work(item: int) -> Any:
        return await asyncio.to_thread(run, item)

    async def ready(group: list[int]) -> None:
        prepare(group)

    async def all_of_them() -> list[Any]:
        return [outcome async for outcome in in_order_async(items, work, prepare=ready, **how)]

    return asyncio.run(all_of_them())


@pytest.fixture(params=[by_threads, by_tasks])
def through(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def call(items: Iterable[int], run: Callable[[int], Any], prepare: Any = lambda _: None, **how: Any) -> Any:
        return request.param(items, run, prepare, **{"total": None, "max_in_flight": 4, "progress": None, **how})

    return call


def test_each_group_is_prepared_before_its_items_run(through: Callable[..., Any]) -> None:
    groups: list[list[int]] = []
    ready: set[int] = set()

    def prepare(group: list[int]) -> None:
        groups.append(group)
        ready.update(group)

    assert through(range(7), lambda item: item in ready, prepare, group=3) == [True] * 7
    assert groups == [[0, 1, 2], [3, 4, 5], [6], []]


@pytest.mark.parametrize("max_in_flight", [-1, 0, 1])
def test_at_least_one_is_in_flight(through: Callable[..., Any], max_in_flight: int) -> None:
    assert through(range(3), lambda item: -item, max_in_flight=max_in_flight) == [0, -1, -2]


def test_nothing_gives_nothing(through: Callable[..., Any]) -> None:
    assert through([], lambda item: item) == []


def test_what_the_items_or_the_work_raise_ends_the_whole(through: Callable[..., Any]) -> None:
    def items() -> Iterable[int]:
        yield 1
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        through(items(), lambda item: item)
    with pytest.raises(ZeroDivisionError):
        through([1, 0, 1], lambda item: 1 / item)


def test_a_call_that_begins_after_the_end_is_cancelled_too() -> None:
    live, cancelled = Live(), threading.Event()
    live.stop()
    with live.holding(cancelled.set):
        assert cancelled.is_set()
    assert live.stopped()


def test_a_call_that_is_over_is_not_cancelled() -> None:
    live, cancelled = Live(), threading.Event()
    with live.holding(cancelled.set):
        pass
    live.stop()
    assert not cancelled.is_set()


def test_the_count_is_known_of_what_has_one() -> None:
    assert count_of([1, 2]) == 2
    assert count_of(iter([1, 2])) is None
