"""A team's quota by the clock, and how turns are shared."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sightline.errors import InvalidInput, Overloaded
from sightline_chassis.admission import Admission
from sightline_chassis.quota import Bucket, Cost, Quota
from sightline_chassis.sections import AdmissionSettings, TeamLimits


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_minute_and_fills_evenly() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.wait(60) == 0
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1)
    assert bucket.wait(30) == pytest.approx(30)
    clock.now = 30
    assert bucket.wait(30) == 0
    clock.now = 10_000
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1)  # a long rest saves at most a minute's allowance
    assert Bucket(None, clock).wait(10**9) == 0


def test_an_allowance_that_changes_keeps_what_was_used() -> None:
    clock = Clock()
    bucket = Bucket(100, clock)
    bucket.take(80)
    bucket.set(200)
    assert bucket.wait(120) == 0
    assert bucket.wait(121) > 0
    bucket.set(50)
    assert bucket.wait(1) > 0
    bucket.set(None)
    assert bucket.wait(10**9) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40)), max_size=200))
def test_a_bucket_never_gives_more_than_a_minute_at_once_and_its_rate(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    taken = 0
    for pause, amount in steps:
        clock.now += pause
        if bucket.wait(amount) == 0:
            bucket.take(amount)
            taken += amount
        assert taken <= 60 + clock.now * 60 / 60 + 1e-6


def test_a_charge_takes_all_or_nothing() -> None:
    quota = Quota("a", lambda: TeamLimits(texts_per_minute=100, images_per_minute=2), 1)
    quota.charge(Cost(texts=10, images=2))
    with pytest.raises(Overloaded) as caught:
        quota.charge(Cost(texts=90, images=1))
    assert (caught.value.reason, caught.value.metadata) == ("TEAM_IMAGES_PER_MINUTE", {"team": "a", "limit": "2"})
    assert caught.value.retry_after is not None
    assert 29 < caught.value.retry_after <= 30
    quota.charge(Cost(texts=90))  # the texts were not taken by the charge that failed
    with pytest.raises(Overloaded, match="texts"):
        quota.check()
    with pytest.raises(InvalidInput, match="101 texts; team a may use 100 a minute"):
        quota.charge(Cost(texts=101))


def _admission(concurrent: int, queue: int) -> Admission:
    return Admission(AdmissionSettings(max_concurrent=concurrent, max_queue=queue, max_wait_seconds=60))


def test_free_turns_go_to_the_team_that_has_the_fewest() -> None:
    async def main() -> list[str]:
        admission, order = _admission(2, 100), []

        async def call(team: str) -> None:
            async with admission.turn(team):
                order.append(team)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for team in ["a"] * 8 + ["b"] * 3 + ["c"]:
                group.create_task(call(team))
        return order

    order = asyncio.run(main())
    assert Counter(order) == {"a": 8, "b": 3, "c": 1}
    assert order[2] == "b"  # although six of a waited before it
    assert order.index("c") < 6
    assert order[-3:] == ["a", "a", "a"]


def test_a_full_queue_drops_the_newest_call_of_the_team_that_has_most() -> None:
    async def main() -> dict[str, list[str]]:
        admission, outcomes, release = _admission(1, 4), {"a": [], "b": []}, asyncio.Event()

        async def call(team: str) -> None:
            try:
                async with admission.turn(team):
                    await release.wait()
                outcomes[team].append("served")
            except Overloaded as error:
                outcomes[team].append(error.reason)

        async with asyncio.TaskGroup() as group:
            for team in ["a"] * 20 + ["b"] * 20:
                group.create_task(call(team))
                await asyncio.sleep(0)
            release.set()
        return outcomes

    outcomes = asyncio.run(main())
    assert {team: Counter(of) for team, of in outcomes.items()} == {
        "a": {"served": 3, "QUEUE_FULL": 17},  # the one that ran, and half of the queue
        "b": {"served": 2, "QUEUE_FULL": 18},
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.booleans()), max_size=60))
def test_no_turn_is_lost_whatever_is_cancelled(calls: list[tuple[str, int, bool]]) -> None:
    async def main() -> None:
        admission = _admission(2, 5)

        async def call(team: str, steps: int) -> None:
            async with admission.turn(team):
                for _ in range(steps):
                    await asyncio.sleep(0)

        tasks = []
        for team, steps, cancel in calls:
            tasks.append(asyncio.create_task(call(team, steps)))
            await asyncio.sleep(0)
            if cancel:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with admission.turn("x"), admission.turn("y"):  # both are free again
            pass
        assert not admission._queues
        assert not admission._running

    asyncio.run(asyncio.wait_for(main(), 10))
