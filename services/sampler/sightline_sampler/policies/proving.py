"""Asking an engine for the proof that a policy arrived: it scores the trainer's probes, and samples a little."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import Arrival, Candidate

from sightline_sampler.engines.base import UNSCORABLE, Conversation, Engine, SampleWork, ScoreWork
from sightline_sampler.policies.gate import Scores, judge
from sightline_sampler.settings import GateSettings

_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """A probe as the engine gets it; arrays (n,)."""

    asked: Conversation
    token_ids: Sequence[int]
    trainer: Scores
    trainer_previous: Scores | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What an engine said under a policy: the score of each question's tokens (None: it cannot score them), and of
    candidates that it drew, their log-probabilities as sampled and as scored."""

    scores: Sequence[Scores | None]
    drawn: Sequence[tuple[Scores, Scores]]


@dataclasses.dataclass(frozen=True, slots=True)
class Pinned:
    """A lease of a version that the caller sees to itself."""

    version: int

    def bind(self) -> int:
        """The version."""
        return self.version


class Examiner:
    """Examines one engine."""

    def __init__(self, engine: Engine, settings: GateSettings) -> None:
        self._engine, self._settings = engine, settings

    async def ask(self, questions: Sequence[ProbeQuestion], version: int) -> Answers:
        """What the engine says under a version that it can answer with now.

        It samples first, by the ordinary way and from the prompts of the probes: whatever it caches of them is then of
        this version when the next one is asked.
        """
        slots = asyncio.Semaphore(_AT_ONCE)

        async def score(question: ProbeQuestion) -> Scores | None:
            async with slots:
                return await self._score(question, question.token_ids, version)

        drawn = await self._sampled(questions, version)
        return Answers(list(await asyncio.gather(*(score(question) for question in questions))), drawn)

    def verdict(
        self, questions: Sequence[ProbeQuestion], before: Answers, after: Answers, previous_version: int
    ) -> Arrival:
        """Judge the answers under the previous version, which has that number, and under the new one.

        Raises:
            PreconditionFailed: the engine can score too few tokens to tell.
        """
        rows = [
            (q, a, b)
            for q, a, b in zip(questions, after.scores, before.scores, strict=True)
            if a is not None and b is not None
        ]
        tokens = sum(len(question.token_ids) for question, _, _ in rows)
        if tokens < self._settings.min_tokens:
            raise PreconditionFailed(
                f"the engine can score {tokens} probe tokens, and {self._settings.min_tokens} are needed "
                "(gate.min_tokens): send more probes",
                reason="TOO_FEW_PROBES",
            )
        previous = [question.trainer_previous for question, _, _ in rows if question.trainer_previous is not None]
        return judge(
            self._settings,
            engine=self._engine.capabilities().engine,
            previous_version=previous_version,
            probes=len(rows),
            new=np.concatenate([a for _, a, _ in rows]),
            previous=np.concatenate([b for _, _, b in rows]),
            trainer=np.concatenate([question.trainer for question, _, _ in rows]),
            trainer_previous=np.concatenate(previous) if len(previous) == len(rows) else None,
            sampled=after.drawn,
        )

    async def _score(self, question: ProbeQuestion, token_ids: Sequence[int], version: int) -> Scores | None:
        work = ScoreWork(question.asked, list(token_ids), Pinned(version))
        try:
            scores = await self._engine.score(work)
        except InvalidInput as error:
            if error.reason != UNSCORABLE:
                raise
            return None
        return np.asarray(scores.logprobs, dtype=np.float64)

    async def _sampled(self, questions: Sequence[ProbeQuestion], version: int) -> list[tuple[Scores, Scores]]:
        """Candidates by the ordinary way: their log-probabilities as sampled, and as scored."""
        pairs: list[tuple[Scores, Scores]] = []
        for number, question in enumerate(questions[: self._settings.sampled]):
            params = SamplingParams(max_tokens=self._settings.sampled_tokens)
            work = SampleWork("arrival", question.asked, [number], params, Pinned(version))
            async for event in self._engine.sample(work):
                if isinstance(event, Candidate) and len(event.logprobs):
                    try:
                        scored = await self._score(question, event.token_ids.tolist(), version)
                    except InvalidInput:  # an id that was drawn and cannot be asked for
                        continue
                    if scored is not None:
                        pairs.append((np.asarray(event.logprobs, dtype=np.float64), scored))
        return pairs
