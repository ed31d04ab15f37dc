"""Evaluation of one policy on held-out images, through the same sampler and scorer that the loop uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from sightline.errors import InvalidInput, PreconditionFailed

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.evaluation.bootstrap import intervals, paired
from sightline_trainer.evaluation.divergence import k3, measurable
from sightline_trainer.evaluation.evaluation_set import FACT_KINDS, EvaluationSet
from sightline_trainer.evaluation.facts import FactCounts
from sightline_trainer.evaluation.pope import Confusion, official_no
from sightline_trainer.evaluation.ratios import Part, Ratios
from sightline_trainer.evaluation.result import differences_json
from sightline_trainer.evaluation.texts import degenerate, distinct
from sightline_trainer.evaluation.wording import shift
from sightline_trainer.files import read_json, read_table, write_json, write_whole
from sightline_trainer.policy_candidates import PolicyCandidates
from sightline_trainer.records.prompt import PROMPT_REASONS, Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.records.response import Response
from sightline_trainer.rewards.clip import ClipScores
from sightline_trainer.together import Together

T = TypeVar("T")

COMPARED = ("chair_s", "cover")
"""Metrics whose change from the base model is in `metrics.json`; `against_base.json` has all."""


@dataclass(frozen=True)
class Caption:
    """One held-out caption, a row of `captions.parquet`: the measured fields of a response, and its comparison with the
    truth. `reward` is its CLIPScore, None if the scorer refused it or was not asked; `degenerate` says why it is
    degenerate, or is ""; `kl_to_base` is its contribution to the KL from the base model (see `divergence`), None if
    unknown."""

    prompt_id: str
    text: str
    tokens: int
    reward: float | None
    policy_version: int
    hallucinated: list[str]
    missed: list[str]
    degenerate: str
    finish_reason: str
    kl_to_base: float | None = None


@dataclass(frozen=True)
class GivenAnswer:
    """One answered question."""

    question_id: str
    prompt_id: str
    kind: str
    text: str
    label: bool
    answer: str
    said: bool
    policy_version: int


@dataclass(frozen=True)
class Evaluated:
    """The texts, and their contributions to each metric, by image."""

    captions: list[Caption]
    greedy: list[Caption]
    answers: list[GivenAnswer]
    ratios: Ratios
    dropped: DroppedRows = field(default_factory=DroppedRows)

    def metrics(self) -> dict[str, float]:
        """The numbers for `metrics.json`: each defined metric, with `_low` and `_high`."""
        bounds = intervals(self.ratios)
        found: dict[str, float] = {}
        for name, value in self.ratios.values().items():
            found[name] = value
            low, high = bounds[name].low, bounds[name].high
            if low is not None and high is not None:
                found |= {f"{name}_low": low, f"{name}_high": high}
        return found

    def write(self, directory: Path, base: Path | None = None) -> dict[str, float]:
        """Write all texts, and the metrics by image.

        Args:
            directory: for captions.parquet, greedy.parquet, answers.parquet and by_image.json, and
                dropped/evaluation.json if something was left out.
            base: the base model's directory; with it, `against_base.json` holds the paired differences.

        Returns:
            The numbers for `metrics.json`; with `base` also the changes of CHAIR_s and cover, and how much the
            captions' wording changed (`wording`; wording.json names the phrase).
        """
        for name, rows in (("captions", self.captions), ("greedy", self.greedy), ("answers", self.answers)):
            if rows:
                table = pa.Table.from_pylist([asdict(row) for row in rows])
                write_whole(directory / f"{name}.parquet", _writer(table))
        write_json(directory / "by_image.json", self.ratios.to_json())
        self.dropped.write(directory / "dropped" / "evaluation.json")
        found = self.metrics()
        known = read_json(base / "by_image.json") if base is not None else None
        if known is not None:
            before = Ratios.from_json(known)
            both = set(before.images) & set(self.ratios.images)  # a picture may have been deleted
            differences = paired(before.only(both), self.ratios.only(both))
            write_json(directory / "against_base.json", differences_json(differences))
            for name in COMPARED:
                one = differences.get(name)
                if one is not None and one.change is not None and one.low is not None and one.high is not None:
                    found |= {f"{name}_change": one.change}
                    found |= {f"{name}_change_low": one.low, f"{name}_change_high": one.high}
        if base is not None and (base / "captions.parquet").exists():
            said = read_table(base / "captions.parquet", columns=["text"])["text"].to_pylist()
            moved = shift(said, [one.text for one in self.captions])
            found["wording"] = moved.size if moved is not None else 0.0
            if moved is not None:
                write_json(directory / "wording.json", asdict(moved))
        return found


def _writer(table: Any) -> Callable[[Path], object]:
    return lambda aside: pq.write_table(table, aside)


async def evaluate(
    held_out: EvaluationSet,
    candidates: PolicyCandidates,
    reward: ClipScores | None,
    *,
    version: int,
    in_flight: int,
    progress: Callable[[int, int], None],
) -> Evaluated:
    """Ask the whole set, with the same seeds for every policy: sampled captions, which are also scored, by the base
    model too if its KL can be computed; greedy captions; questions, greedily. A prompt or picture that is refused is
    left out and listed in the result's `dropped`.

    Raises:
        PreconditionFailed: NO_PROMPTS: none of the prompts could be asked.
        SightlineError: a service stays unavailable.
    """
    slots, together, done, dropped = asyncio.Semaphore(in_flight), Together(), 0, DroppedRows()
    engine = (await candidates.client.policies()).capabilities
    diverges = measurable(engine, temperature=held_out.temperature, top_p=candidates.settings.top_p)
    diverges = diverges and candidates.decoder is None  # guided or penalised samples do not come from the policy itself

    async def ask(prompt: Prompt, count: int, temperature: float, text: str | None = None) -> list[Response]:
        return await candidates(prompt, count, iteration=0, version=version, temperature=temperature, text=text)

    async def counted(name: str, work: Callable[[], Awaitable[T]]) -> T | None:
        nonlocal done
        result = None
        try:
            async with slots:
                result = await work()
        except InvalidInput as error:
            if not error.reason.startswith(PROMPT_REASONS):
                raise
            dropped.add(name, Refusal(error.reason, error.message))
        done += 1
        progress(done, held_out.total)
        return result

    async def divergence(prompt: Prompt, sample: Response) -> float | None:
        if not diverges or len(sample.logprobs) != len(sample.token_ids):
            return None
        if not version or not sample.token_ids:
            return 0.0  # the base model itself, or an empty text
        return k3(sample.logprobs, await candidates.logprobs(prompt, sample, version=0))

    async def sampled(at: int) -> tuple[list[Response], float | None]:
        prompt = held_out.prompts[at]
        with together.on_the_way():
            samples = await ask(prompt, held_out.samples if at < held_out.diverse else 1, held_out.temperature)
        if reward is not None:
            await together()
            (score,) = await reward(prompt, [samples[0].text])
            samples[0] = replace(samples[0], score=score)
        return samples, await divergence(prompt, samples[0])

    prompts, questions = held_out.prompts, held_out.questions
    async with asyncio.TaskGroup() as group:
        captioned = [group.create_task(counted(one.id, partial(sampled, at))) for at, one in enumerate(prompts)]
        plain = [group.create_task(counted(one.id, partial(ask, one, 1, 0.0))) for one in prompts[: held_out.greedy]]
        said = [
            group.create_task(counted(f"question {one.id}", partial(ask, prompt, 1, 0.0, one.text)))
            for prompt, one in questions
        ]
    greedy = [task.result() for task in plain]
    both = [
        (prompt, samples)
        for at, (prompt, task) in enumerate(zip(prompts, captioned, strict=True))
        if (samples := task.result()) is not None and (at >= len(greedy) or greedy[at] is not None)
    ]
    answered = [(asked, one) for asked, task in zip(questions, said, strict=True) if (one := task.result()) is not None]
    if not both:
        raise PreconditionFailed(
            f"none of {len(prompts)} held-out prompts could be used: {dropped.summary}; correct the rows of data.test",
            reason="NO_PROMPTS",
        )
    asked_of = replace(held_out, prompts=[prompt for prompt, _ in both], questions=[asked for asked, _ in answered])
    known = {prompt.id for prompt in asked_of.prompts}
    firsts = [one[0] for prompt, one in zip(prompts, greedy, strict=False) if one is not None and prompt.id in known]
    found = assemble(asked_of, [samples for _, samples in both], firsts, [one[0] for _, one in answered])
    return replace(found, dropped=dropped)


def assemble(
    held_out: EvaluationSet,
    captioned: Sequence[tuple[list[Response], float | None]],
    plain: list[Response],
    said: list[Response],
) -> Evaluated:
    """The metrics of the texts.

    Args:
        held_out: the questions.
        captioned: for each prompt its samples (the first may have a score), and `kl_to_base` of the first.
        plain: greedy captions of the first prompts.
        said: the answer to each question.
    """
    sampled = [
        _caption(held_out, prompt, samples[0], kl)
        for prompt, (samples, kl) in zip(held_out.prompts, captioned, strict=True)
    ]
    greedy = [
        _caption(held_out, prompt, one) for prompt, one in zip(held_out.prompts[: len(plain)], plain, strict=True)
    ]
    answers = [
        GivenAnswer(
            question_id=question.id,
            prompt_id=prompt.id,
            kind=question.kind,
            text=question.text,
            label=question.yes,
            answer=one.text,
            said=not official_no(one.text),
            policy_version=one.policy_version,
        )
        for (prompt, question), one in zip(held_out.questions, said, strict=True)
    ]

    def rows() -> Iterator[tuple[str, dict[str, Part]]]:
        for (caption, facts), (samples, _) in zip(sampled, captioned, strict=True):
            yield caption.prompt_id, _parts(caption, facts)
            if len(samples) > 1:
                yield caption.prompt_id, {"distinct": distinct([one.text for one in samples])}
        for caption, facts in greedy:
            parts = _parts(caption, facts)
            kept = ("chair_s", "chair_i", "cover", "mean_tokens", "degenerate")
            yield caption.prompt_id, {f"greedy_{name}": parts[name] for name in kept if name in parts}
        for answer in answers:
            yield answer.prompt_id, _answer_parts(answer)

    return Evaluated([one for one, _ in sampled], [one for one, _ in greedy], answers, Ratios.collect(rows()))


def _caption(
    held_out: EvaluationSet, prompt: Prompt, sample: Response, kl_to_base: float | None = None
) -> tuple[Caption, FactCounts | None]:
    # No objects means that the image is not annotated, not that it is empty.
    facts = held_out.facts.read(prompt.id, sample.text, prompt.objects) if held_out.facts and prompt.objects else None
    return Caption(
        prompt_id=prompt.id,
        text=sample.text,
        tokens=len(sample.token_ids),
        reward=sample.score.reward,
        policy_version=sample.policy_version,
        hallucinated=[mention.object for mention in facts.caption.hallucinated] if facts else [],
        missed=facts.caption.missed if facts else [],
        degenerate=degenerate(sample.text, sample.finish_reason),
        finish_reason=sample.finish_reason,
        kl_to_base=kl_to_base,
    ), facts


def _parts(caption: Caption, facts: FactCounts | None) -> dict[str, Part]:
    scored = {} if caption.reward is None else {"clip_score": (caption.reward, 1.0)}
    diverged = {} if caption.kl_to_base is None else {"kl_to_base": (caption.kl_to_base, 1.0)}
    return (facts.parts() if facts else {}) | {
        **scored,
        **diverged,
        "mean_tokens": (caption.tokens, 1.0),
        "degenerate": (float(bool(caption.degenerate)), 1.0),
    }


def _answer_parts(answer: GivenAnswer) -> dict[str, Part]:
    parts = Confusion.one(answer.label, answer.said).parts()
    if answer.kind in FACT_KINDS:
        return {f"question_{answer.kind}_accuracy": parts["accuracy"]}
    return {f"pope_{name}": part for name, part in parts.items()} | {f"pope_{answer.kind or 'all'}_f1": parts["f1"]}
