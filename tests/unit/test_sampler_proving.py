"""What an examiner asks of an engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from sightline.sampler.turns import user_turn
from sightline.sampler.types import Candidate, TokenScores
from sightline_sampler.engines.base import Conversation, SampleWork, ScoreWork
from sightline_sampler.policies.proving import Examiner, ProbeQuestion
from sightline_sampler.settings import GateSettings


class Drawing:
    """An engine whose samples come when as many are asked for at once as `together`."""

    def __init__(self, together: int) -> None:
        self.together = asyncio.Barrier(together)

    def parts(self) -> list[Any]:
        return [self]

    async def sample(self, work: SampleWork) -> AsyncIterator[Candidate]:
        await asyncio.wait_for(self.together.wait(), 10)
        (seed,) = work.seeds
        yield Candidate(0, "", np.array([seed]), np.array([-1.0]), None, "length", seed, 1)

    async def score(self, work: ScoreWork) -> TokenScores:
        return TokenScores(np.full(len(work.token_ids), -2.0, np.float32), 1)


def test_samples_are_drawn_together_and_scored_in_order() -> None:
    async def ask() -> Any:
        engine: Any = Drawing(3)
        questions = [
            ProbeQuestion(Conversation(user_turn(f"what {number}", 0), ()), [7, 8], np.zeros(2), None)
            for number in range(4)
        ]
        (answers,) = (await Examiner(engine, GateSettings(sampled=3)).ask(questions, 1)).values()
        return answers

    answers = asyncio.run(ask())
    assert [scores.tolist() for scores in answers.scores] == [[-2.0, -2.0]] * 4
    assert [(a.tolist(), b.tolist()) for a, b in answers.drawn] == [([-1.0], [-2.0])] * 3
