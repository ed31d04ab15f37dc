"""Compares the trainer's log-probs with the sampler's for the same tokens.

Both sides of an online loop compute log-probs of one policy by different code. If they disagree because of another
template, picture or number type, the ratio to the reference belongs to another policy, and losses look normal. So every
side that was sampled on the clean picture by the policy that the update starts from is compared, token by token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sightline.errors import PreconditionFailed
from torch import Tensor

from sightline_trainer.dpo.collator import SIDES, unfold

logger = logging.getLogger(__name__)

LIMITS = {"float32": 1e-3, "bfloat16": 0.05}
"""Maximum mean |difference| a token of one side, in nats, by the update's number type."""
MOST_OVER = 0.05
"""Maximum share of the sides that may exceed the limit."""
_WORST = 5
_DISTORTED = ("noised_image",)


@dataclass(frozen=True)
class SampledLogprobs:
    """The sampler's log-probs, in nats, for what a version sampled in one iteration, by prompt and token ids."""

    version: int
    logprobs: Mapping[tuple[str, tuple[int, ...]], Sequence[float]]

    @classmethod
    def read(cls, candidates: Path, version: int) -> SampledLogprobs:
        """From an iteration's `candidates/`: all that `version` sampled on the clean picture."""
        columns = ["prompt_id", "prompt", "token_ids", "logprobs", "policy_version", "source"]
        found = {}
        for path in sorted(candidates.glob("[0-9]*.parquet")):
            for row in pq.read_table(path, columns=columns).to_pylist():
                wanted = row["policy_version"] == version and row["source"] not in _DISTORTED
                if wanted and row["logprobs"] and len(row["logprobs"]) == len(row["token_ids"]):
                    found[_key(row["prompt_id"], row["prompt"], row["token_ids"])] = row["logprobs"]
        return cls(version, found)

    def of(self, pair: Mapping[str, Any], side: str) -> Sequence[float] | None:
        """The sampler's log-probs of a pair's side, or None if it cannot be compared."""
        if pair.get(f"{side}_images"):
            return None
        return self.logprobs.get(_key(pair["prompt_id"], pair["prompt"][-1]["content"], pair[f"{side}_ids"]))

    def sums(self, pair: Mapping[str, Any]) -> list[list[float]] | None:
        """[2, P] summed log-probs of a pair's chosen and rejected side, for each of its P rejected sides; None if the
        sampler did not tell them all."""
        found = [[self.of(part, side) for part in unfold([pair])] for side in SIDES]
        known = [[math.fsum(each) for each in side if each is not None] for side in found]
        return known if all(len(some) == len(side) for some, side in zip(known, found, strict=True)) else None


def _key(prompt_id: str, prompt: str, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    return f"{prompt_id}\n{prompt}", tuple(ids)


def gaps(
    sampled: SampledLogprobs, pairs: Sequence[Mapping[str, Any]], logprobs: Tensor, masks: Tensor
) -> dict[str, float]:
    """Mean |difference| a token by side, named PROMPT_ID SIDE INDEX.

    Args:
        pairs: B pairs of a batch.
        logprobs: [2 B, L - 1] from the trainer; [4 B, L - 1] with second rejected sides.
        masks: the same shape, True at response tokens.
    """
    count, found = len(pairs), {}
    folded = len(logprobs) == 4 * count
    # Unfolded rows are chosen, chosen, rejected, second rejected.
    places = (
        {"chosen": 0, "rejected": 2 * count, "second_rejected": 3 * count}
        if folded
        else {"chosen": 0, "rejected": count}
    )
    for side, first in places.items():
        for at, pair in enumerate(pairs):
            reported = sampled.of(pair, side)
            if reported is None:
                continue
            ours = logprobs[first + at][masks[first + at]].tolist()
            apart = [abs(mine - theirs) for mine, theirs in zip(ours, reported, strict=True)]
            number = pair.get(f"{side}_index")
            found[f"{pair['prompt_id']} {side} {'' if number is None else number}".strip()] = sum(apart) / len(apart)
    return found


def judge(found: Mapping[str, float], limit: float) -> dict[str, float]:
    """The distribution of the gaps: `sampled_sides`, `sampled_gap_mean`, `_median`, `_p95`, `_max`, `_over`.

    Args:
        found: as `gaps` returns them.
        limit: maximum gap of a side, in nats a token.

    Raises:
        PreconditionFailed: SAMPLED_LOGPROBS_DIFFER, with the worst rows, if too many are over the limit.
    """
    if not found:
        return {"sampled_sides": 0.0}
    values = sorted(found.values())
    over = sum(not value <= limit for value in values) / len(values)
    figures = {
        "sampled_sides": float(len(values)),
        "sampled_gap_mean": sum(values) / len(values),
        "sampled_gap_median": values[len(values) // 2],
        "sampled_gap_p95": values[math.ceil(0.95 * len(values)) - 1],
        "sampled_gap_max": values[-1],
        "sampled_gap_over": over,
    }
    worst = sorted(found, key=lambda name: -found[name])[:_WORST]
    named = ", ".join(f"{name} ({found[name]:.2g})" for name in worst)
    if over > MOST_OVER:
        raise PreconditionFailed(
            f"the trainer's log-probs of {over:.0%} of {len(values)} sampled sides differ from the sampler's by more "
            f"than {limit:g} nats a token (mean {figures['sampled_gap_mean']:.2g}, at most {MOST_OVER:.0%} may); "
            f"worst: {named}. "
            "Do both have the same base model, chat template, processor and number type (dpo.dtype, the sampler's "
            "engine.dtype)? dpo.max_sampled_gap sets the limit",
            reason="SAMPLED_LOGPROBS_DIFFER",
        )
    if over:
        logger.warning(
            "log-probs of %d sides differ from the sampler's by over %g nats a token: %s",
            over * len(values),
            limit,
            named,
        )
    return figures
