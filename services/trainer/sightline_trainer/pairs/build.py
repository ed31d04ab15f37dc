"""Pairs: preference pairs from scored candidates, in TRL's preference format.

`pairs.parquet` has the columns of TRL's conversational vision format (`images`, `prompt`, `chosen`,
`rejected`) and in addition what the loop knows: the turns with the images' places, if these are not all before the
first user's text; the images of a rejected side that answers to others; sampled token ids, rewards, margin, weight, the
rule that made the pair, source and policy version of both sides, and the iteration; the marks of both sides' sentences,
if any; and for losses that need them, the policy's first sample (`own_ids`) and the scorer's embedding of the first
image. `datasets.load_dataset("parquet", ...)` gives images as images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value, disable_progress_bars
from sightline.sampler import Turn
from sightline.sampler.turns import user_turn

from sightline_trainer.files import read_table, write_whole
from sightline_trainer.pairs.filter import Filter
from sightline_trainer.pairs.rule import Rule
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response

disable_progress_bars()  # a run draws its own
_MESSAGES = [{"role": Value("string"), "content": Value("string")}]
_PARTS = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]
FEATURES = Features(
    {
        "prompt_id": Value("string"),
        "images": List(Image()),
        "rejected_images": List(Image()),
        "prompt": _MESSAGES,
        "turns": _PARTS,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "rendered_prompt": Value("string"),
        "chosen_ids": List(Value("int32")),
        "rejected_ids": List(Value("int32")),
        "chosen_reward": Value("float64"),
        "rejected_reward": Value("float64"),
        "margin": Value("float64"),
        "weight": Value("float64"),
        "rule": Value("string"),
        "chosen_source": Value("string"),
        "rejected_source": Value("string"),
        "chosen_policy_version": Value("int64"),
        "rejected_policy_version": Value("int64"),
        "chosen_index": Value("int32"),
        "rejected_index": Value("int32"),
        "iteration": Value("int32"),
        "chosen_sentences": List(Value("float64")),
        "rejected_sentences": List(Value("float64")),
        "own_ids": List(Value("int32")),
        "embedding": List(Value("float32")),
    }
)
_OPTIONAL = ("turns", "rejected_images", "chosen_sentences", "rejected_sentences", "own_ids", "embedding")
"""Empty if a recipe does not need them; pairs of earlier releases lack all except `rejected_images`."""


class PairBuilder:
    """Builds the pairs of one iteration, and counts the drops by reason.

    `counts`: `pairs`; each dropped candidate under `candidate_<reason>`, each pair that a rule made and a filter
    dropped under `pair_<reason>`, each prompt without a pair once under `prompt_<reason>`.
    """

    def __init__(
        self,
        filters: Mapping[str, Filter],
        rules: Mapping[str, Rule],
        *,
        iteration: int,
        own: bool = False,
        embeddings: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Build with these parts.

        Args:
            own: whether pairs store the policy's first sample, which no rule chose.
            embeddings: embeddings of pictures by prompt id, which pairs store.
        """
        self.filters = filters
        self.rules = rules
        self.iteration = iteration
        self.own = own
        self.embeddings = embeddings or {}
        self.counts: Counter[str] = Counter(pairs=0)
        self._unscored: Counter[str] = Counter()
        self._scored = 0

    @property
    def unscored(self) -> Counter[str]:
        """If no candidate had a reward: their number by the reason in their scores. Otherwise empty."""
        return Counter() if self._scored else self._unscored

    def add(self, other: PairBuilder) -> None:
        """Add the outcomes of another builder."""
        self.counts.update(other.counts)
        self._unscored.update(other._unscored)
        self._scored += other._scored

    def build(
        self, prompts: Mapping[str, Prompt], rollouts: Iterable[tuple[str, Sequence[Response]]]
    ) -> Iterator[dict[str, Any]]:
        """Rows of `pairs.parquet`, in the order of `rollouts`: (prompt id, all its candidates)."""
        for prompt_id, candidates in rollouts:
            filters = self.filters.values()
            if (prompt := prompts.get(prompt_id)) is None:  # the dataset has changed
                self.counts["prompt_not_drawn"] += 1
                continue
            fault = _first(each.prompt_fault(prompt) or each.group_fault(candidates) for each in filters)
            fault = fault or _unreadable(prompt)
            if fault is not None:
                self.counts[f"prompt_{fault}"] += 1
                continue
            dropped: list[str] = []
            lacking: list[str] = []
            found = False
            for asked in dict.fromkeys(scored.prompt for scored in candidates):
                answers = [scored for scored in candidates if scored.prompt == asked]
                own = next((each.token_ids for each in answers if self.own and each.source == "policy"), [])
                more = {"own_ids": own, "embedding": self.embeddings.get(prompt_id, [])}
                group = self._fit(answers)
                for name, rule in self.rules.items():
                    picked = rule.pick(group, self._pair_fault)
                    dropped += picked.dropped
                    lacking += [picked.lacking] if picked.lacking else []
                    images = rule.rejected_images(prompt, self.iteration) if picked.pairs else []
                    for chosen, rejected, weight in picked.pairs:
                        found = True
                        rejected = replace(rejected, images=images) if images else rejected
                        self.counts["pairs"] += 1
                        yield _row(prompt, chosen, rejected, name, weight, self.iteration) | more
            self.counts.update(f"pair_{reason}" for reason in dropped)
            if not found:
                self.counts[f"prompt_{[*dropped, *lacking, 'too_few'][0]}"] += 1

    def _fit(self, group: Sequence[Response]) -> list[Response]:
        """The candidates without a fault and without duplicate texts."""
        fitting: dict[str, Response] = {}
        for scored in group:
            fault = None
            if scored.score.reward is None:
                fault = "unscored"
                self._unscored[scored.score.error or "NO_VALUE"] += 1
            else:
                self._scored += 1
            fault = fault or _first(filter_.candidate_fault(scored) for filter_ in self.filters.values())
            if fault is None and scored.text in fitting:
                fault = "duplicate"
            if fault is None:
                fitting[scored.text] = scored
            else:
                self.counts[f"candidate_{fault}"] += 1
        return list(fitting.values())

    def _pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        return _first(filter_.pair_fault(chosen, rejected) for filter_ in self.filters.values())


def _unreadable(prompt: Prompt) -> str | None:
    """Why a prompt no longer has a picture: datasets change while runs are stopped."""
    try:
        for image in prompt.images:
            with image.open("rb"):
                pass
    except OSError:
        return "image_file_unreadable"
    return None


def _images_come_first(asked: Sequence[Turn]) -> bool:
    """Whether all images come before the first user's text, where TRL puts the images of plain-text messages."""
    first = next(turn for turn in asked if turn.role == "user")
    later = any(turn.images for turn in asked if turn is not first)
    return not later and first.content == user_turn(first.text, first.images)[0].content


def _first(faults: Iterable[str | None]) -> str | None:
    return next((fault for fault in faults if fault is not None), None)


def _row(
    prompt: Prompt, chosen: Response, rejected: Response, rule: str, weight: float, iteration: int
) -> dict[str, Any]:
    asked = prompt.asked(chosen.prompt or None)
    return {
        "prompt_id": prompt.id,
        "images": [{"bytes": image.read_bytes(), "path": image.name} for image in prompt.images],
        "rejected_images": [{"bytes": image, "path": None} for image in rejected.images],
        "prompt": [{"role": turn.role, "content": turn.text} for turn in asked],
        "turns": [] if _images_come_first(asked) else [turn.message() for turn in asked],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "rendered_prompt": chosen.rendered_prompt,
        "chosen_ids": chosen.token_ids,
        "rejected_ids": rejected.token_ids,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "margin": round(chosen.reward - rejected.reward, 6),  # rewards have two decimals, their difference noise
        "weight": weight,
        "rule": rule,
        "chosen_source": chosen.source,
        "rejected_source": rejected.source,
        "chosen_policy_version": chosen.policy_version,
        "rejected_policy_version": rejected.policy_version,
        "chosen_index": chosen.index,
        "rejected_index": rejected.index,
        "iteration": iteration,
        "chosen_sentences": chosen.score.sentences,
        "rejected_sentences": rejected.score.sentences,
    }


def write_pairs(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write `pairs.parquet`, with some hundred rows in memory at a time; returns the number of rows."""
    count = 0

    def write(aside: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(aside, FEATURES.arrow_schema) as writer:
            rest = iter(rows)
            while some := list(islice(rest, 256)):
                writer.write_table(pa.Table.from_pylist(some, FEATURES.arrow_schema))
                count += len(some)

    write_whole(path, write)
    return count


def read_pairs(path: Path) -> Dataset:
    """The pairs of an iteration as a `datasets.Dataset`; images are decoded when accessed."""
    table = read_table(path)
    for name in sorted(set(_OPTIONAL) - set(table.column_names)):
        table = table.append_column(name, pa.array([[]] * len(table), FEATURES.arrow_schema.field(name).type))
    return Dataset(table.select(list(FEATURES))).cast(FEATURES)


def to_train_on(path: Path) -> Dataset:
    """As `read_pairs`, without weights that are all 1 and without empty columns, which saves the update work."""
    pairs = read_pairs(path)
    filled = {name: pc.sum(pc.list_value_length(pairs.data.column(name))).as_py() for name in _OPTIONAL}
    needless = [name for name, values in filled.items() if not values]
    if all(weight == 1.0 for weight in pairs["weight"]):
        needless.append("weight")
    return pairs.remove_columns(needless)
