"""Evaluation of one policy on held-out images, through the same sampler and scorer that the loop uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sightline_trainer.candidates.policy import PolicyCandidates
from sightline_trainer.evaluation.chair import Chair, Vocabulary, chair
from sightline_trainer.prompts import Prompt
from sightline_trainer.rewards.clip import ClipReward
from sightline_trainer.files import write_whole


@dataclass(frozen=True)
class Caption:
    """One held-out caption. ``reward`` is its CLIPScore, None where the scorer refused it."""

    prompt_id: str
    text: str
    tokens: int
    reward: float | None
    policy_version: int
    hallucinated: list[str]
    missed: list[str]


@dataclass(frozen=True)
class Evaluated:
    """What was measured: CHAIR counts, mean CLIPScore over scored captions, mean length in tokens."""

    chair: Chair
    clip_score: float
    mean_tokens: float
    captions: list[Caption]

    def metrics(self) -> dict[str, float]:
        """The numbers of ``metrics.json``."""
        return {
            "chair_s": self.chair.chair_s or 0.0,
            "chair_i": self.chair.chair_i or 0.0,
            "cover": self.chair.cover or 0.0,
            "clip_score": self.clip_score,
            "mean_tokens": self.mean_tokens,
        }

    def write(self, path: Path) -> None:
        """Write the captions as Parquet."""
        table = pa.Table.from_pylist([asdict(caption) for caption in self.captions])
        write_whole(path, lambda aside: pq.write_table(table, aside))


async def evaluate(
    prompts: Sequence[Prompt],
    vocabulary: Vocabulary,
    candidates: PolicyCandidates,
    reward: ClipReward,
    *,
    version: int,
    temperature: float,
    in_flight: int,
    progress: Callable[[int, int], None],
) -> Evaluated:
    """One caption for each prompt, with the same seeds for every policy."""
    slots, done = asyncio.Semaphore(in_flight), 0

    async def one(prompt: Prompt) -> Caption:
        nonlocal done
        async with slots:
            (sample,) = await candidates(prompt, 1, iteration=0, version=version, temperature=temperature)
            (score,) = await reward(prompt, [sample.text])
        done += 1
        progress(done, len(prompts))
        mentioned = vocabulary.mentions(sample.text)
        return Caption(
            prompt_id=prompt.id,
            text=sample.text,
            tokens=len(sample.token_ids),
            reward=score.reward,
            policy_version=sample.policy_version,
            hallucinated=[name for name in mentioned if name not in prompt.objects],
            missed=[name for name in prompt.objects if name not in mentioned],
        )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(prompt)) for prompt in prompts]
    captions = [task.result() for task in tasks]
    rewards = [caption.reward for caption in captions if caption.reward is not None]
    return Evaluated(
        chair=chair(
            ((caption.text, prompt.objects) for caption, prompt in zip(captions, prompts, strict=True)), vocabulary
        ),
        clip_score=sum(rewards) / len(rewards) if rewards else 0.0,
        mean_tokens=sum(caption.tokens for caption in captions) / len(captions),
        captions=captions,
    )
