"""Patience: what ends the tries of a call, and what does not."""

import asyncio
import threading
import time

import pytest
from sightline.errors import Cancelled, DeadlineExceeded, InvalidInput, Overloaded, SightlineError, Unavailable
from sightline.patience import ONCE, Budget, Patience, Tries, is_worth_a_retry

FAST = Patience(first_delay=0.001, max_delay=0.002)


class Attempts:
    """Fails with these errors in turn, then answers."""

    def __init__(self, *errors: SightlineError) -> None:
        self.errors, self.seconds = list(errors), list[float]()

    def __call__(self, seconds: float) -> str:
        self.seconds.append(seconds)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def run(kind: str, tries: Tries, attempts: Attempts) -> str:
    async def attempt(seconds: float) -> str:
        return attempts(seconds)

    return tries.call(attempts) if kind == "sync" else asyncio.run(tries.acall(attempt))


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_asks_until_there_is_an_answer(kind: str) -> None:
    attempts = Attempts(Unavailable("away"), Overloaded("full", retry_after=0.001), Unavailable("away"))
    assert run(kind, Tries(FAST), attempts) == "done"
    assert len(attempts.seconds) == 4
    assert attempts.seconds == [365 * 86400.0] * 4


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (Unavailable("away"), True),
        (Cancelled("the server goes"), True),
        (Overloaded("full", retry_after=1), True),
        (Overloaded("for good"), False),
        (DeadlineExceeded("too late"), False),
        (DeadlineExceeded("Triton", reason="BACKEND_TIMEOUT"), True),
        (InvalidInput("wrong"), False),
        (SightlineError("Stream removed"), True),
    ],
)
def test_what_is_worth_a_retry(kind: str, error: SightlineError, worth: bool) -> None:
    assert is_worth_a_retry(error) is worth
    attempts = Attempts(error)
    if worth:
        assert run(kind, Tries(Patience(first_delay=0.001), 5), attempts) == "done"
    else:
        with pytest.raises(type(error), match=error.message):
            run(kind, Tries(FAST, 5), attempts)
        assert len(attempts.seconds) == 1


def test_tries_are_counted(kind: str) -> None:
    attempts = Attempts(*[Unavailable(str(n)) for n in range(9)])
    with pytest.raises(Unavailable, match="2") as caught:
        run(kind, Tries(Patience(tries=3, first_delay=0.001)), attempts)
    assert caught.value.metadata["tries"] == "3"
    with pytest.raises(Unavailable) as caught:
        run(kind, Tries(ONCE), attempts)
    assert "tries" not in caught.value.metadata


def test_patience_ends_though_the_deadline_does_not(kind: str) -> None:
    attempts = Attempts(*[Unavailable("away") for _ in range(1000)])
    with pytest.raises(Unavailable):
        run(kind, Tries(Patience(seconds=0.2, first_delay=0.01, max_delay=0.01), 600), attempts)
    assert len(attempts.errors) > 900


def test_a_try_that_takes_too_long_is_made_again_until_the_deadline(kind: str) -> None:
    attempts = Attempts(DeadlineExceeded("slow"), DeadlineExceeded("slow"))
    assert run(kind, Tries(Patience(try_seconds=2, first_delay=0.001), 60), attempts) == "done"
    assert attempts.seconds == [2, 2, 2]
    attempts = Attempts(Unavailable("away"), DeadlineExceeded("slow"))
    with pytest.raises(Unavailable, match="away"):  # what the deadline cut short was tried for that
        run(kind, Tries(Patience(try_seconds=2, first_delay=0.001), 1.5), attempts)


def test_patience_counts_anew_from_what_came() -> None:
    tries = Tries(Patience(seconds=0.3, first_delay=0.1, max_delay=0.1))
    for _ in range(5):
        time.sleep(tries.wait_after(Unavailable("broke off")))
        tries.progressed()
    time.sleep(tries.wait_after(Unavailable("broke off")) + 0.3)
    with pytest.raises(Unavailable):
        tries.wait_after(Unavailable("broke off"))


def test_the_budget_is_of_all_calls_of_a_client() -> None:
    patience = Patience(first_delay=0.001, max_delay=0.001, per_second=10, burst=2)
    budget = Budget(patience)
    waits = [Tries(patience, budget=budget).wait_after(Unavailable("away")) for _ in range(5)]
    assert max(waits[:2]) <= 0.001
    assert waits[4] > waits[3] > waits[2] > 0.05


def test_a_client_that_is_closed_asks_no_more() -> None:
    budget, caught = Budget(Patience()), list[Exception]()

    def ask() -> None:
        try:
            Tries(Patience(first_delay=60, max_delay=60, seconds=600), 600, budget).call(Attempts(Unavailable("away")))
        except SightlineError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    budget.closed.set()
    thread.join(30)
    assert [type(error) for error in caught] == [Unavailable]


def test_what_nobody_waits_for_is_not_asked_again() -> None:
    attempts = Attempts(Unavailable("away"))
    with pytest.raises(Unavailable):
        Tries(FAST).call(attempts, stopped=lambda: True)
    assert len(attempts.seconds) == 1
