"""Ask a sampler many prompts and keep its answers, with CLIPScores if a scorer is named."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience
from sightline.sampler import AsyncSamplerClient, Exact, PolicyInfo, exact
from sightline.scorer import AsyncScorerClient

from sightline_trainer.decoder_options import DecoderOptions
from sightline_trainer.evaluation.answers import AnswerFile
from sightline_trainer.evaluation.lines import encodable
from sightline_trainer.outage import outliving
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.same_pictures import check_sampler, check_scorer
from sightline_trainer.together import Together

TRY_SECONDS = 120.0  # for one question


@dataclass(frozen=True)
class EvalItem:
    """One thing to ask. `key` is its name in the answer file."""

    key: str
    image: Path
    text: str
    temperature: float
    scored: bool = False


@dataclass(frozen=True)
class Asker:
    """How to ask.

    Attributes:
        sampler, scorer: gRPC targets.
        seed: seed of the samples; an item's seed depends only on it and on the item's key.
        max_tokens: maximum new tokens of an answer.
        in_flight: number of concurrent requests.
        credentials: `tls` and `token` of both clients.
        decoder: decoding options; None: plain sampling.
    """

    sampler: str
    scorer: str | None = None
    seed: int = 0
    max_tokens: int = 128
    in_flight: int = 32
    credentials: Mapping[str, Any] = field(default_factory=dict)
    decoder: DecoderOptions | None = None

    async def ask(
        self,
        items: Sequence[EvalItem],
        answers: Path | None,
        identity: dict[str, Any],
        progress: Callable[[int, int], None],
    ) -> tuple[dict[str, dict[str, Any]], int]:
        """All answers by key, each with `text`, `finish_reason`, `tokens` and `clip_score` (None if not requested or if
        the scorer refused), and the policy version that gave them.

        Raises:
            InvalidInput: an image is missing, or `answers` belongs to another evaluation.
            PreconditionFailed: the sampler's policy changed meanwhile, or a service has another rule for reading
                pictures.
            SightlineError: a service is unavailable for over ten minutes (the sampler at first: 10 s), or refuses.
        """
        for item in items:
            if not encodable(item.text):
                raise InvalidInput(
                    f"{item.key}: the text contains half of a character (a lone surrogate)",
                    reason="PROMPT_HALF_CHARACTER",
                )
            if not item.image.is_file():
                raise InvalidInput(f"no image {item.image} ({item.key}); see --data", reason="IMAGE_NOT_FOUND")
        policy = await self._policy()
        version = policy.version
        async with AsyncSamplerClient(self.sampler, **outliving(TRY_SECONDS), **self.credentials) as sampler:
            await check_sampler(sampler, self.sampler)
            asked = {
                "policy_version": version,
                "policy_digest": policy.digest,
                "seed": self.seed,
                "max_tokens": self.max_tokens,
                **identity,
            }
            with AnswerFile(answers, asked) as kept:
                async with self._scorer() as scorer:
                    if scorer is not None:
                        await check_scorer(scorer, self.scorer or "")
                    # With its run: other runs may have a policy of that version at the same sampler.
                    await self._missing(items, kept, sampler, scorer, exact(version, policy.run_id), progress)
                return {item.key: kept.known[item.key] for item in items}, version

    def _scorer(self) -> AsyncScorerClient | nullcontext[None]:
        if self.scorer is None:
            return nullcontext()
        return AsyncScorerClient(self.scorer, **outliving(TRY_SECONDS), **self.credentials)

    async def _policy(self) -> PolicyInfo:
        try:
            async with AsyncSamplerClient(self.sampler, patience=Patience(seconds=10), **self.credentials) as sampler:
                return await sampler.policy()
        except Unavailable as error:
            raise Unavailable(
                f"no sampler answers at {self.sampler} ({error}); start one (sightline serve sampler --set "
                "engine.model=...) or name another with --sampler",
                reason="NO_SAMPLER",
            ) from error

    async def _missing(
        self,
        items: Sequence[EvalItem],
        kept: AnswerFile,
        sampler: AsyncSamplerClient,
        scorer: AsyncScorerClient | None,
        policy: Exact,
        progress: Callable[[int, int], None],
    ) -> None:
        slots, together = asyncio.Semaphore(self.in_flight), Together()
        digests = _Digests()
        missing = [item for item in items if kept.known.get(item.key, {}).get("of") != digests.of(item)]
        done = len(items) - len(missing)
        progress(done, len(items))

        async def one(item: EvalItem) -> None:
            nonlocal done
            async with slots:
                try:
                    answer = await self._answer(item, sampler, scorer, policy, together)
                except InvalidInput as error:  # names the one of thousands
                    why = f"{item.key} with {item.image}: {error.message}"
                    raise InvalidInput(why, reason=error.reason) from error
            kept.add(item.key, {**answer, "of": digests.of(item)})
            done += 1
            progress(done, len(items))

        try:
            async with asyncio.TaskGroup() as group:
                for item in missing:
                    group.create_task(one(item))
        except BaseExceptionGroup as failed:
            error: BaseException = failed
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, PreconditionFailed):
                raise PreconditionFailed(
                    f"the sampler unloaded policy {policy.version} meanwhile ({error}); run again, with another "
                    "--answers",
                    reason="POLICY_CHANGED",
                ) from failed
            raise error from failed

    async def _answer(
        self,
        item: EvalItem,
        sampler: AsyncSamplerClient,
        scorer: AsyncScorerClient | None,
        policy: Exact,
        together: Together,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.decoder is not None:
            options = await self.decoder(Prompt(item.key, (item.image,), item.text), item.text)
        with together.on_the_way():
            samples = await sampler.sample(
                item.image,
                item.text,
                1,
                seeds=[_seed(self.seed, item.key)],
                temperature=item.temperature,
                max_tokens=self.max_tokens,
                policy=policy,
                **options,
            )
        (said,) = samples.candidates
        score = None
        if scorer is not None and item.scored:
            await together()
            score = await _clip_score(scorer, item.image, said.text)
        return {
            "text": said.text,
            "finish_reason": said.finish_reason,
            "tokens": len(said.token_ids),
            "clip_score": score,
        }


async def _clip_score(scorer: AsyncScorerClient, image: Path, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float((await scorer.score(image, [text])).clip_score[0])
    except InvalidInput:
        return None


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{key}/{seed}".encode()).digest()[:8], "big") >> 1


class _Digests:
    """Identifies an answer's question: a digest of text and image, so that a changed question is asked again."""

    def __init__(self) -> None:
        self._images: dict[Path, bytes] = {}

    def of(self, item: EvalItem) -> str:
        if item.image not in self._images:
            self._images[item.image] = hashlib.sha256(item.image.read_bytes()).digest()
        return hashlib.sha256(self._images[item.image] + item.text.encode()).hexdigest()[:16]
