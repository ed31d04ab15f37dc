"""Pairs: preference pairs from scored candidates, in TRL's preference format.

``pairs.parquet`` has the columns of TRL's conversational vision format (``images``, ``prompt``, ``chosen``,
``rejected``) and beside them what the loop knows: sampled token ids, rewards, margin, the policy version of both
sides, the iteration. ``datasets.load_dataset("parquet", ...)`` gives images as images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value, disable_progress_bars

from sightline_trainer.pairs.filters import candidate_fault
from sightline_trainer.pairs.rules import best_worst
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Filters
from sightline_trainer.rollout import Scored
from sightline_trainer.runs import write_whole

disable_progress_bars()  # a run draws its own
_MESSAGES = [{"role": Value("string"), "content": Value("string")}]
FEATURES = Features(
    {
        "prompt_id": Value("string"),
        "images": List(Image()),
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "rendered_prompt": Value("string"),
        "chosen_ids": List(Value("int32")),
        "rejected_ids": List(Value("int32")),
        "chosen_reward": Value("float64"),
        "rejected_reward": Value("float64"),
        "margin": Value("float64"),
        "chosen_policy_version": Value("int64"),
        "rejected_policy_version": Value("int64"),
        "chosen_index": Value("int32"),
        "rejected_index": Value("int32"),
        "iteration": Value("int32"),
    }
)


def build(
    prompts: Sequence[Prompt], rollouts: dict[str, list[Scored]], filters: Filters, *, iteration: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Pairs in the order of ``prompts``, and how many candidates and prompts were dropped for which reason.

    Every prompt with no pair counts once under ``prompt_<reason>``, every candidate dropped under
    ``candidate_<reason>``.
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for prompt in prompts:
        group: dict[str, Scored] = {}
        for scored in rollouts.get(prompt.id, []):
            fault = candidate_fault(scored, filters)
            if fault is None and scored.candidate.text in group:
                fault = "duplicate"
            if fault is None:
                group[scored.candidate.text] = scored
            else:
                counts[f"candidate_{fault}"] += 1
        pairs, reason = best_worst(list(group.values()), filters)
        if reason is not None:
            counts[f"prompt_{reason}"] += 1
        counts["pairs"] += len(pairs)
        rows.extend(_row(prompt, chosen, rejected, iteration) for chosen, rejected in pairs)
    return rows, dict(counts)


def _row(prompt: Prompt, chosen: Scored, rejected: Scored, iteration: int) -> dict[str, Any]:
    assert chosen.score.reward is not None
    assert rejected.score.reward is not None
    return {
        "prompt_id": prompt.id,
        "images": [{"bytes": prompt.image.read_bytes(), "path": prompt.image.name}],
        "prompt": [{"role": "user", "content": prompt.prompt}],
        "chosen": [{"role": "assistant", "content": chosen.candidate.text}],
        "rejected": [{"role": "assistant", "content": rejected.candidate.text}],
        "rendered_prompt": chosen.candidate.rendered_prompt,
        "chosen_ids": chosen.candidate.token_ids,
        "rejected_ids": rejected.candidate.token_ids,
        "chosen_reward": chosen.score.reward,
        "rejected_reward": rejected.score.reward,
        "margin": chosen.score.reward - rejected.score.reward,
        "chosen_policy_version": chosen.candidate.policy_version,
        "rejected_policy_version": rejected.candidate.policy_version,
        "chosen_index": chosen.candidate.index,
        "rejected_index": rejected.candidate.index,
        "iteration": iteration,
    }


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``pairs.parquet``."""
    dataset = Dataset.from_list(rows, features=FEATURES)
    write_whole(path, lambda aside: dataset.to_parquet(str(aside)))


def read_pairs(path: Path) -> Dataset:
    """The pairs of an iteration as a ``datasets.Dataset``; images are decoded when looked at."""
    import pyarrow.parquet as pq

    return Dataset(pq.read_table(path)).cast(FEATURES)
