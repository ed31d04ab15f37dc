"""Diverse group beam search (Vijayakumar et al., arXiv 1610.02424), as in transformers until 4.x and in CSR.

K beams form G groups of K / G. At each step the groups choose in turn; for a beam with score s and each id v

    total = s + y_v - diversity * (beams of earlier groups that chose v at this step)

where y = log softmax of the (guided) logits, then penalised for repetition, then -inf for ids that must not be sampled.
Of a group's best 2 K / G totals (more with several end ids), those that end a response are finished if they are among
the best K / G; the first K / G others continue. A finished response's score is total / length ** penalty. A group is
done when its worst finished response beats the best possible continuation. Responses unfinished at the length limit are
used unchanged. The best K / G of each group are the candidates, the overall best first.

The search is deterministic: candidates depend only on image, prompt and parameters. As in transformers, diversity costs
remain in a beam's score. A stop string ends a beam like an end token (CSR ends beams at '.').
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sightline.sampler.types import Candidate

from sightline_sampler.engines.base import not_finite
from sightline_sampler.engines.local import guidance
from sightline_sampler.engines.local.kv import RowCache
from sightline_sampler.engines.local.lane import Outcome, step
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import Prefix
from sightline_sampler.engines.local.rows import Request
from sightline_sampler.engines.local.stops import holds_stop

_UNUSED = -1e9  # score of a group's beams that have not started: all but the first


@dataclasses.dataclass(frozen=True, slots=True)
class _Beam:
    """A response so far: ids, the policy's log-probabilities, and its score."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Ended:
    beam: _Beam
    score: float
    reason: Literal["eos", "stop", "length"]


class _Group:
    """The beams of a group, and its best finished ones."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self.beams = [_Beam(score=0.0 if i == 0 else _UNUSED) for i in range(size)]
        self.ended: list[_Ended] = []
        self.done = False
        self._size, self._penalty = size, length_penalty

    def end(self, beam: _Beam, reason: Literal["eos", "stop", "length"]) -> None:
        """Keep a finished response if it is one of the best."""
        score = beam.score / len(beam.ids) ** self._penalty
        self.ended.append(_Ended(beam, score, reason))
        self.ended.sort(key=lambda one: -one.score)  # stable: among equals the earlier one is kept
        del self.ended[self._size :]

    def settle(self, best: float, length: int) -> None:
        """Done if no continuation could beat the finished ones; `best` is the best total of this step."""
        full = len(self.ended) >= self._size
        self.done = full and self.ended[-1].score >= best / length**self._penalty


class BeamSearch:
    """One request's beams; the loop treats it like a `Lane`.

    Args:
        base: the base model's facts.
        version: the policy's version.
        request: the request; `work.params.beams` is set.
        prompts: prefix and row of the prompt, and of the reference prompt if guided.
    """

    def __init__(self, base: BaseModel, version: int, request: Request, prompts: Sequence[tuple[Prefix, int]]) -> None:
        self._base, self.version, self._request = base, version, request
        params, count = request.work.params, len(request.work.seeds)
        assert params.beams is not None
        self._params, self._settings = params, params.beams
        self._size = count // params.beams.groups
        self._groups = [_Group(self._size, params.beams.length_penalty) for _ in range(params.beams.groups)]
        rows = torch.zeros(count, dtype=torch.long, device=base.device)
        self._caches: list[RowCache] = []
        self._lengths: list[int] = []
        self._places: list[tuple[int, int]] = []  # shifts of positions, and their axes
        self._logits: list[torch.Tensor] = []
        for prefix, row in prompts:
            cache = RowCache(prefix.kept, fused=base.fused)
            cache.insert(prefix.kept, rows + row)
            self._caches.append(cache)
            self._lengths.append(prefix.length)
            self._places.append((int(prefix.shift[row]), prefix.axes))
            self._logits.append(prefix.logits[rows + row])
        request.admitted = count

    def __len__(self) -> int:
        return sum(cache.count for cache in self._caches)

    def reserved(self) -> int:
        """Maximum slots that the beams may need."""
        return len(self._request.work.seeds) * self._request.slots_each() if len(self) else 0

    def requests(self) -> set[Request]:
        """The requests of the beams."""
        return {self._request} if len(self) else set()

    def drop(self, gone: Callable[[Request], bool]) -> int:
        """Drop the beams if their request is `gone`; returns how many."""
        count = len(self)
        if not count or not gone(self._request):
            return 0
        self.clear()
        return count

    def clear(self) -> None:
        """Free everything."""
        self._caches, self._logits = [], []

    def sample(self) -> list[Outcome]:
        """Take one step of the search; returns all candidates if it was the last."""
        count = len(self._request.work.seeds)
        policy = torch.log_softmax(self._logits[0][:count].double(), dim=-1)
        if not bool(torch.isfinite(policy[:, 0]).all() & torch.isfinite(policy.amax(dim=-1)).all()):
            self.clear()
            return [(self._request, not_finite(self.version))]
        scores = self._scores(policy)
        taken = torch.zeros(scores.shape[1], dtype=scores.dtype, device=scores.device)
        parents: list[int] = []
        for number, group in enumerate(self._groups):
            first = number * self._size
            if group.done:
                parents += range(first, first + self._size)
                continue
            own = scores[first : first + self._size] - self._settings.diversity_penalty * taken
            chosen = self._advance(group, own, policy[first : first + self._size])
            parents += [first + parent for parent in chosen]
            for beam in group.beams:
                taken[beam.ids[-1]] += 1
        limit = self._request.limit
        if not all(group.done for group in self._groups) and len(self._running().ids) < limit:
            self._follow(parents)
            return []
        out = self._finish()
        self.clear()
        return out

    def forward(self, model: Any) -> None:
        """Run the ids just chosen; `model` has the policy switched on."""
        beams = [beam for group in self._groups for beam in group.beams]
        tokens = np.array([beam.ids[-1] for beam in beams])
        for number, cache in enumerate(self._caches):
            lengths = np.full(len(beams), self._lengths[number])
            cache.widen(lengths)  # all have the same length and keep their order
            shift, axes = self._places[number]
            self._logits[number] = step(self._base, model, self.version, cache, tokens, lengths, lengths + shift, axes)
            self._lengths[number] += 1

    def _scores(self, policy: torch.Tensor) -> torch.Tensor:
        """y of the module's formula: (beams, vocabulary)."""
        device, scores, count = self._base.device, policy, len(policy)
        if len(self._caches) > 1:
            numbers = guidance.weights(self._params.guidance)
            weight, beta = (torch.full((count,), n, dtype=torch.float64, device=device) for n in numbers)
            reference = self._logits[1][:count]
            scores = guidance.guide(self._logits[0][:count], reference, weight, beta, self._base.suppressed)
            scores = torch.log_softmax(scores, dim=-1)
        if self._params.repetition_penalty != 1:
            seen = torch.zeros(scores.shape, dtype=torch.bool, device=device)
            prompt = self._request.prepared.ids.to(device)
            seen[:, prompt[prompt < scores.shape[1]]] = True
            for row, beam in enumerate(beam for group in self._groups for beam in group.beams):
                seen[row, list(beam.ids)] = True
            penalty = torch.full((count,), self._params.repetition_penalty, device=device)
            scores = guidance.penalise(scores, seen, penalty)
        return scores.index_fill(1, self._base.suppressed, -torch.inf)

    def _advance(self, group: _Group, scores: torch.Tensor, policy: torch.Tensor) -> list[int]:
        """Set a group's next beams; returns the old beam of each."""
        size, vocabulary = scores.shape
        before = torch.tensor([beam.score for beam in group.beams], dtype=scores.dtype, device=scores.device)
        totals = (scores + before[:, None]).flatten()
        wanted = min(len(totals), max(2, 1 + len(self._base.eos_ids)) * size)
        best, places = (tensor.tolist() for tensor in torch.topk(totals, wanted))
        chances = [
            (total, place // vocabulary, place % vocabulary)
            for total, place in zip(best, places, strict=True)
            if total > -np.inf
        ]
        if not chances:  # no id may follow: the response ends here
            for beam in group.beams:
                if beam.ids:
                    group.end(beam, "length")
            group.done = True
            return list(range(size))
        going: list[tuple[int, _Beam]] = []
        for rank, (total, parent, token) in enumerate(chances):
            old = group.beams[parent]
            beam = _Beam((*old.ids, token), (*old.logprobs, float(policy[parent, token])), total)
            reason = self._ends(beam)
            if reason is None:
                going.append((parent, beam))
            elif rank < size:
                group.end(beam, reason)
            if len(going) == size:
                break
        length = len(group.beams[0].ids) + 1
        group.settle(chances[0][0], length)
        if not going:  # every allowed id ends the response
            total, parent, token = chances[0]
            old = group.beams[parent]
            going.append((parent, _Beam((*old.ids, token), (*old.logprobs, float(policy[parent, token])), _UNUSED)))
        while len(going) < size:  # fewer ids than beams
            parent, beam = going[0]
            going.append((parent, dataclasses.replace(beam, score=_UNUSED)))
        group.beams = [beam for _, beam in going]
        return [parent for parent, _ in going]

    def _ends(self, beam: _Beam) -> Literal["eos", "stop"] | None:
        if beam.ids[-1] in self._base.eos_ids:
            return "eos"
        stop = self._params.stop
        return "stop" if stop and holds_stop(self._base.tokenizer, beam.ids, stop) else None

    def _running(self) -> _Beam:
        return next(group for group in self._groups if not group.done).beams[0]

    def _follow(self, parents: list[int]) -> None:
        if parents != list(range(len(parents))):
            for cache in self._caches:
                cache.gather(np.array(parents))

    def _finish(self) -> list[Outcome]:
        for group in self._groups:
            if not group.done:
                for beam in group.beams:
                    group.end(beam, "length")
        ended = sorted((one for group in self._groups for one in group.ended), key=lambda one: -one.score)
        return [
            (
                self._request,
                Candidate(
                    index=index,
                    text="",
                    token_ids=np.array(one.beam.ids, dtype=np.int64),
                    logprobs=np.array(one.beam.logprobs, dtype=np.float32),
                    behaviour_logprobs=np.zeros(len(one.beam.ids), np.float32),
                    finish_reason=one.reason,
                    seed=self._request.work.seeds[index],
                    policy_version=self.version,
                ),
            )
            for index, one in enumerate(ended)
        ]
