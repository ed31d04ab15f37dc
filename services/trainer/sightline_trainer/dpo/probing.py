"""Scores an update's probes under the policy before and after it, as many as the size of its change needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from transformers import TrainerCallback

from sightline_trainer.dpo.collator import first_pair
from sightline_trainer.dpo.probes import LEAST_PAIRS, MOST_PAIRS, responses_needed
from sightline_trainer.dpo.reference_logprobs import token_logprobs
from sightline_trainer.dpo.trainer import FastDPOTrainer


@dataclass(frozen=True)
class UpdateProbe:
    """A response with the trainer's own log-probs of its tokens under the new policy, in nats.

    It differs from the clients' `Probe`: it is stored as JSON in the iteration's files, and names its picture by the
    prompt's id.
    """

    prompt_id: str
    token_ids: list[int]
    logprobs: list[float]
    prompt: str = ""
    """The user's text, if it differs from the dataset's."""
    previous_logprobs: list[float] = field(default_factory=list)
    """The same tokens under the policy that the update started from; empty if not computed."""


def probe(trainer: FastDPOTrainer, pairs: range) -> list[UpdateProbe]:
    """The trainer's log-probs for the responses of some pairs under the current policy.

    The responses are each pair's chosen side, and its rejected side if it has the same pictures. Each response is
    returned once.

    The forward passes use TRL's rows instead of the pack, so that the sampler's arrival check also checks the pack.

    Args:
        trainer: has the policy.
        pairs: indices of the pairs in the data.
    """
    rows = [first_pair(trainer.train_dataset[index]) for index in pairs]
    collate, size = trainer.data_collator.plain(), trainer.args.per_device_train_batch_size
    found: list[UpdateProbe] = []
    for some, batch in collate.batches(rows, size):
        masks, values = batch["completion_mask"][:, 1:].bool(), token_logprobs(trainer, batch).cpu()
        for at, row in enumerate(some):
            for side, place in (("chosen", at), ("rejected", len(some) + at)):  # all chosen sides come first
                if side == "chosen" or not row.get("rejected_images"):
                    scores = values[place][masks[place].cpu()].tolist()
                    name, ids, asked = row["prompt_id"], list(row[f"{side}_ids"]), row["prompt"][-1]["content"]
                    found.append(UpdateProbe(name, ids, scores, asked))
    return _united([], found)


class Probing(TrainerCallback):
    """The probes of one update.

    With `auto`, four pairs are scored when training begins, which is enough for most updates. More are scored only if
    the change is so small that it needs them; the initial weights are then restored for the time of the scoring. All
    pairs are scored at once where several processes train, and before a checkpoint is written, because an update that
    resumes no longer has the initial weights.

    Args:
        wanted: the recipe's `publication.probes`.
        pairs: the number of pairs in the data.
        dtype: the recipe's `dpo.dtype`.
        score: scores some pairs under the current policy. Every process calls it.
        initial: a context that restores the initial weights; None where they cannot be restored.
    """

    def __init__(
        self,
        wanted: int | Literal["auto"],
        pairs: int,
        dtype: str,
        score: Callable[[range], list[UpdateProbe]],
        initial: Callable[[], AbstractContextManager[None]] | None,
    ) -> None:
        self._wanted, self._dtype, self._score, self._initial = wanted, dtype, score, initial
        self._most = min(MOST_PAIRS if wanted == "auto" else wanted, pairs)
        self._scored = 0
        self._before: list[UpdateProbe] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._before:
            step = self._wanted == "auto" and self._initial is not None
            self._scored = min(LEAST_PAIRS, self._most) if step else self._most
            self._before = self._score(range(self._scored))

    def kept(self) -> list[dict[str, Any]]:
        """All log-probs from before the update, for an update that resumes from a checkpoint."""
        self._more_before(self._most)
        return [asdict(each) for each in self._before]

    def recall(self, kept: list[dict[str, Any]]) -> None:
        """Restore the log-probs from before the update."""
        self._before, self._scored = [UpdateProbe(**each) for each in kept], self._most

    def after(self) -> list[UpdateProbe]:
        """The probes, with the log-probs of the current policy."""
        after = self._score(range(self._scored))
        while (needed := self._needed(after)) is None and self._scored < self._most:
            more = self._more_before(min(2 * self._scored, self._most))
            after = _united(after, self._score(more))
        before = self._scores_before(after)
        return [replace(new, previous_logprobs=old) for new, old in zip(after, before, strict=True)][:needed]

    def _needed(self, after: list[UpdateProbe]) -> int | None:
        if self._wanted != "auto":
            return len(after)
        return responses_needed(self._scores_before(after), [each.logprobs for each in after], self._dtype)

    def _scores_before(self, after: list[UpdateProbe]) -> list[list[float]]:
        known = {_key(each): each.logprobs for each in self._before}
        return [known[_key(each)] for each in after]

    def _more_before(self, pairs: int) -> range:
        """Score further pairs with the initial weights, until `pairs` are scored. Returns the new indices."""
        more = range(self._scored, pairs)
        if more and self._initial is not None:
            with self._initial():
                self._before = _united(self._before, self._score(more))
            self._scored = pairs
        return more


def _united(some: list[UpdateProbe], more: list[UpdateProbe]) -> list[UpdateProbe]:
    """Both lists, without repeated responses; the first of equal ones stays."""
    once: dict[tuple[str, tuple[int, ...]], UpdateProbe] = {}
    for each in (*some, *more):
        once.setdefault(_key(each), each)
    return list(once.values())


def _key(response: UpdateProbe) -> tuple[str, tuple[int, ...]]:
    return response.prompt_id, tuple(response.token_ids)
