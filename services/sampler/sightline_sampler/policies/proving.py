"""Lets an engine prove that a policy arrived: it scores the trainer's probes, and samples a little."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError, Unavailable
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import user_turn
from sightline.sampler.types import Arrival, Candidate

from sightline_sampler.engines.base import UNSCORABLE, Conversation, Engine, SampleWork, ScoreWork
from sightline_sampler.engines.picture import colours
from sightline_sampler.policies.gate import Scores, judge
from sightline_sampler.settings import GateSettings

_AT_ONCE = 8
_COMPARED, _COMPARED_TOKENS = 8, 32  # responses for comparing two parts, and their length


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """A probe for the engine; arrays (n,)."""

    asked: Conversation
    token_ids: Sequence[int]
    trainer: Scores
    trainer_previous: Scores | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """An engine's answers under a policy: the score of each question's tokens (None: it cannot score them), and for its
    sampled candidates the log-probabilities as sampled and as scored."""

    scores: Sequence[Scores | None]
    drawn: Sequence[tuple[Scores, Scores]]


@dataclasses.dataclass(frozen=True, slots=True)
class Pinned:
    """A lease on a version that the caller manages itself."""

    version: int

    def bind(self) -> int:
        """The version."""
        return self.version


class Examiner:
    """Examines an engine, and each of its parts."""

    def __init__(self, engine: Engine, settings: GateSettings) -> None:
        self._engine, self._settings = engine, settings

    async def ask(self, questions: Sequence[ProbeQuestion], version: int) -> dict[Engine, Answers]:
        """The answers of each part of the engine under a version that it can use now. A part that does not answer is
        left out, if enough others do.

        Raises:
            SightlineError: too few answer; the first one's error.
        """
        parts = self._engine.parts()
        found = await asyncio.gather(*(self._ask(part, questions, version) for part in parts), return_exceptions=True)
        said = {part: one for part, one in zip(parts, found, strict=True) if not isinstance(one, BaseException)}
        errors = [(part, one) for part, one in zip(parts, found, strict=True) if isinstance(one, BaseException)]
        if not parts:
            raise _too_few(0, self._engine)
        for part, error in errors:
            if len(said) < self._engine.quorum() or not isinstance(error, SightlineError):
                raise error
            self._engine.leave_out(part, f"it does not answer probes: {error}")
        return said

    async def _ask(self, engine: Engine, questions: Sequence[ProbeQuestion], version: int) -> Answers:
        """The part samples first, in the ordinary way and from the probes' prompts, so that anything it caches for them
        comes from this version when the next one is tested.
        """
        slots = asyncio.Semaphore(_AT_ONCE)

        async def score(question: ProbeQuestion, token_ids: Sequence[int]) -> Scores | None:
            async with slots:
                return await self._score(engine, question, token_ids, version)

        async def again(question: ProbeQuestion, candidate: Candidate) -> Scores | None:
            try:
                return await score(question, candidate.token_ids.tolist())
            except InvalidInput:  # a sampled id that cannot be scored
                return None

        drawn = await self._sampled(engine, questions, version, slots)
        scores, scored = await asyncio.gather(
            asyncio.gather(*(score(question, question.token_ids) for question in questions)),
            asyncio.gather(*(again(question, candidate) for question, candidate in drawn)),
        )
        sampled = [np.asarray(candidate.logprobs, dtype=np.float64) for _, candidate in drawn]
        return Answers(scores, [(a, b) for a, b in zip(sampled, scored, strict=True) if b is not None])

    def verdict(
        self,
        questions: Sequence[ProbeQuestion],
        before: Mapping[Engine, Answers],
        after: Mapping[Engine, Answers],
        previous_version: int,
    ) -> Arrival:
        """Judge the answers under the previous version (with that number) and under the new one. Parts that fail are
        left out, if enough others pass.

        Returns:
            The result; of several parts, the worst one's.

        Raises:
            PreconditionFailed: the engine can score too few tokens to decide.
            Unavailable: too few parts are available.
        """
        arrivals = {
            part: self._judge(questions, before[part], after[part], previous_version)
            for part in after
            if part in before
        }
        passed = [arrival for arrival in arrivals.values() if arrival.passed]
        failed = {part: arrival for part, arrival in arrivals.items() if not arrival.passed}
        if len(passed) < self._engine.quorum():
            if not failed:
                raise _too_few(len(passed), self._engine)
            return next(iter(failed.values()))
        for part, arrival in failed.items():
            self._engine.leave_out(part, f"a policy did not arrive: {arrival.reason}")
        for part in self._engine.parts():
            if part not in arrivals:
                self._engine.leave_out(part, "it came back while a policy was being proved")
        return max(passed, key=lambda arrival: arrival.gap)

    async def compare(self, part: Engine, proved: Engine, versions: Sequence[int]) -> None:
        """Make a part show that it holds the same as a proved one: under each version, it must give the same log-probs
        for responses that the other one samples, and change from version 0 in the same way.

        Args:
            part: the part that was unavailable or left out.
            proved: a part that was not.
            versions: the versions that both hold; 0 is the first.

        Raises:
            PreconditionFailed: POLICY_DID_NOT_ARRIVE.
        """
        picture = colours()
        asked = Conversation(user_turn("Describe the picture.", 1), (picture,))
        params = SamplingParams(max_tokens=_COMPARED_TOKENS)
        for version in versions:
            work = SampleWork("comparison", asked, proved.derive_seeds(version, _COMPARED), params, Pinned(version))
            drawn = [event async for event in proved.sample(work) if isinstance(event, Candidate)]
            questions = [ProbeQuestion(asked, one.token_ids.tolist(), np.zeros(0), None) for one in drawn]
            theirs = [await self._ask(proved, questions, one) for one in (0, version)]
            ours = [await self._ask(part, questions, one) for one in (0, version)]
            rows = zip(*(said.scores for said in (*theirs, *ours)), strict=True)
            kept = [row for row in rows if all(one is not None for one in row)]
            if not kept:
                raise PreconditionFailed("none of its samples can be scored", reason="POLICY_DID_NOT_ARRIVE")
            base, now, our_base, our_now = (np.concatenate(column) for column in zip(*kept, strict=True))
            gap = float(np.abs(our_now - now).mean())
            reason = f"{gap:.4f} nats a token apart" if not gap <= self._settings.max_gap else ""
            if version:
                reason = judge(
                    self._settings,
                    engine=part.name,
                    previous_version=0,
                    probes=len(kept),
                    new=our_now,
                    previous=our_base,
                    trainer=now,
                    trainer_previous=base,
                    sampled=ours[1].drawn,
                ).reason
            if reason:
                raise PreconditionFailed(
                    f"it does not give the log-probs of the others under policy {version}: {reason}",
                    reason="POLICY_DID_NOT_ARRIVE",
                )

    def _judge(
        self, questions: Sequence[ProbeQuestion], before: Answers, after: Answers, previous_version: int
    ) -> Arrival:
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

    @staticmethod
    async def _score(engine: Engine, question: ProbeQuestion, token_ids: Sequence[int], version: int) -> Scores | None:
        work = ScoreWork(question.asked, list(token_ids), Pinned(version))
        try:
            scores = await engine.score(work)
        except InvalidInput as error:
            if error.reason != UNSCORABLE:
                raise
            return None
        return np.asarray(scores.logprobs, dtype=np.float64)

    async def _sampled(
        self, engine: Engine, questions: Sequence[ProbeQuestion], version: int, slots: asyncio.Semaphore
    ) -> list[tuple[ProbeQuestion, Candidate]]:
        """Candidates sampled in the ordinary way and together, with their prompts' questions."""

        async def draw(number: int, question: ProbeQuestion) -> list[tuple[ProbeQuestion, Candidate]]:
            params = SamplingParams(max_tokens=self._settings.sampled_tokens)
            work = SampleWork("arrival", question.asked, [number], params, Pinned(version))
            async with slots:
                drawn = [event async for event in engine.sample(work) if isinstance(event, Candidate)]
            return [(question, one) for one in drawn if len(one.logprobs)]

        some = questions[: self._settings.sampled]
        each = await asyncio.gather(*(draw(number, question) for number, question in enumerate(some)))
        return [one for drawn in each for one in drawn]


def _too_few(count: int, engine: Engine) -> Unavailable:
    why = f": {engine.ready()}" if engine.ready() else ""
    return Unavailable(
        f"{count} parts of the engine answer probes, but {engine.quorum()} must{why}",
        reason="ENGINE_DOWN",
        retry_after=2.0,
    )
