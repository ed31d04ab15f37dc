"""Scoring given responses: those of one prompt that wait together share its prefix, and nobody waits long for that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampler_engine import Base, RunningEngine, running_engine
from sampler_models import png
from sightline.errors import Unavailable
from sightline.sampler.types import TokenScores
from sightline_sampler.engines.base import ScoreWork

MODEL = Path(__file__).parents[2] / "playground/weights/llava"
ASKED = ("describe the picture .", "is there a red star ? yes or no ?")


@pytest.fixture(scope="module")
def at() -> Iterator[RunningEngine]:
    with running_engine(MODEL) as engine:
        yield engine


@pytest.fixture
def prefixes(at: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of each prefix that is run."""
    loaded, _ = at.engine._need()
    run, seen = loaded.prefiller.run, []

    def counted(model: Any, prompts: Any, key: int) -> Any:
        seen.append(len(prompts))
        return run(model, prompts, key)

    monkeypatch.setattr(loaded.prefiller, "run", counted)
    return seen


def work(at: RunningEngine, question: int, ids: list[int], lease: Any = None) -> ScoreWork:
    return ScoreWork(at.work(png(3), ASKED[question], 1).asked, ids, lease or Base())


async def held(at: RunningEngine, works: list[ScoreWork]) -> tuple[threading.Event, list[asyncio.Task[TokenScores]]]:
    """Tasks whose responses all wait until the event is set."""
    loaded, loop = at.engine._need()
    go = threading.Event()
    loop.call(go.wait)
    tasks = []
    for number, each in enumerate(works, 1):
        tasks.append(asyncio.create_task(at.engine.score(each)))
        while len(loaded.teacher._waiting) < number:
            await asyncio.sleep(0.001)
    return go, tasks


def test_responses_to_one_prompt_share_its_prefix(at: RunningEngine, prefixes: list[int]) -> None:
    """Interleaved with another prompt's; the bits are those of one alone."""
    works = [work(at, number % 2, [20 + number, 7, 9][: 1 + number % 3]) for number in range(8)]
    alone = [at.run(at.engine.score(each)).logprobs for each in works]
    assert prefixes == [1] * 8
    prefixes.clear()

    async def together() -> list[TokenScores]:
        go, tasks = await held(at, works)
        go.set()
        return await asyncio.gather(*tasks)

    for one, scores in zip(alone, at.run(together()), strict=True):
        np.testing.assert_array_equal(scores.logprobs, one)
    assert prefixes == [1, 1]
    assert at.engine._need()[0].teacher._shared is None, "nobody waits for it any longer"


def test_many_responses_to_one_prompt_do_not_starve_another(at: RunningEngine, prefixes: list[int]) -> None:
    done: list[int] = []

    async def together() -> None:
        go, tasks = await held(at, [work(at, int(number == 1), [7]) for number in range(21)])
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: done.append(number))
        go.set()
        await asyncio.gather(*tasks)

    at.run(together())
    assert prefixes == [1, 1, 1]
    assert done.index(1) == 8, "eight of the first prompt, then this one"


def test_one_that_fails_or_leaves_does_not_end_the_others(at: RunningEngine) -> None:
    class Gone:
        def bind(self) -> int:
            raise Unavailable("the policy has left")

    async def together() -> list[TokenScores | BaseException]:
        go, tasks = await held(at, [work(at, 0, [7]), work(at, 0, [7], Gone()), work(at, 0, [8]), work(at, 0, [9])])
        tasks[2].cancel()
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, refused, cancelled, last = at.run(together())
    assert [type(each) for each in (first, refused, cancelled, last)] == [
        TokenScores, Unavailable, asyncio.CancelledError, TokenScores,
    ]  # fmt: skip


def test_those_that_wait_when_the_engine_stops_get_its_error() -> None:
    at = RunningEngine(MODEL)

    async def together() -> list[TokenScores | BaseException]:
        go, tasks = await held(at, [work(at, 0, [7]), work(at, 1, [7])])
        stopping = asyncio.create_task(at.engine.stop())
        while not at_end(at):
            await asyncio.sleep(0.001)
        go.set()
        await stopping
        return await asyncio.gather(*tasks, return_exceptions=True)

    def at_end(at: RunningEngine) -> bool:
        loop = at.engine._loop
        return loop is None or loop._stopping

    try:
        found = at.run(together())
    finally:
        at.close()
    assert all(isinstance(each, TokenScores | Unavailable) for each in found)
