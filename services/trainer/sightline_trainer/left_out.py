"""A run's messages about rows that it left out, and its error if none is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sightline.errors import InvalidInput, PreconditionFailed

from sightline_trainer.dropped import DroppedRows, summary_of
from sightline_trainer.evaluation.evaluation_set import EvaluationSet
from sightline_trainer.pools import Pool
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate

_CHUNK = 64


def first_passing(pool: Pool, count: int, gate: RowGate) -> tuple[list[Prompt], DroppedRows]:
    """The first `count` prompts of a pool with readable pictures (or all), and the rows left out, including the pool's
    own.

    Raises:
        InvalidInput: there is no such file.
    """
    found: list[Prompt] = []
    dropped = DroppedRows()
    dropped.counts.update(pool.dropped.counts)
    dropped.rows += pool.dropped.rows
    for first in range(0, len(pool), _CHUNK):
        for prompt in pool.rows(range(first, min(first + _CHUNK, len(pool)))):
            if len(found) == count:
                return found, dropped
            if (fault := gate.asked(prompt)) is None:
                found.append(prompt)
            else:
                dropped.add(prompt.id, fault)
    if not found:
        raise InvalidInput(
            f"{pool.name}: {none_of(len(pool), dropped.counts)}: {dropped.summary}",
            reason=dropped.reason or "DATASET_EMPTY",
        )
    return found, dropped


def askable(held_out: EvaluationSet, gate: RowGate, dropped: DroppedRows) -> EvaluationSet:
    """The set without questions that the model cannot take, which are recorded."""
    questions = []
    for prompt, question in held_out.questions:
        if (fault := gate.text(question.text, "prompt")) is None:
            questions.append((prompt, question))
        else:
            dropped.add(f"question {question.id}", fault)
    return replace(held_out, questions=questions)


def counts_of(dropped: Iterable[Mapping[str, str]]) -> Counter[str]:
    """Outcomes of a rollout's dropped rows, as counted in pairs.json: `prompt_<reason>`, `candidate_<reason>`."""
    counts: Counter[str] = Counter()
    for each in dropped:
        reason = each["reason"].lower().removeprefix("candidate_")
        counts[f"candidate_{reason}" if "source" in each else f"prompt_{each['reason'].lower()}"] += 1
    return counts


def no_pairs(
    iteration: int,
    prompts: int,
    counts: Mapping[str, int],
    dropped: Sequence[Mapping[str, str]],
    unscored: Mapping[str, int],
) -> PreconditionFailed:
    """The error of an iteration without pairs: about its rows if none could be read, about its reward if no candidate
    has one, otherwise about its filters.

    Args:
        unscored: candidates without a reward by reason, if no candidate has one; otherwise empty.
    """
    gone = [each for each in dropped if "source" not in each]
    if len(gone) >= prompts:
        reasons = Counter(each["reason"] for each in gone)
        return PreconditionFailed(
            f"iteration {iteration}: {none_of(prompts, reasons)}: {summary_of(reasons, gone)}",
            reason=next(iter(reasons)) if len(reasons) == 1 else "NO_PROMPTS",
        )
    if unscored:
        return PreconditionFailed(
            f"iteration {iteration} has no pair to learn from: {nothing_scored(unscored)}", reason="NOTHING_SCORED"
        )
    return PreconditionFailed(
        f"iteration {iteration} has no pair to learn from: {dict(counts)}; loosen `filters` or sample more",
        reason="NO_PAIRS",
    )


def nothing_scored(reasons: Mapping[str, int]) -> str:
    """That no candidate has a reward, and what to do."""
    told = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return (
        f"no candidate has a reward ({told}); correct reward.terms (the log has the first failure of each third-party "
        "term), then run it again"
    )


def none_of(count: int, reasons: Mapping[str, int]) -> str:
    """What is wrong with all rows, in a few words."""
    pictures = all(reason.startswith("IMAGE_") for reason in reasons)
    return f"no image of {count} could be read" if pictures else f"none of {count} prompts could be used"
