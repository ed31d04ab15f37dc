"""Rows of one policy, decoded together: one token each per step; finished rows leave, new ones join at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sightline.sampler.types import Candidate

from sightline_sampler.engines.base import not_finite
from sightline_sampler.engines.local import guidance
from sightline_sampler.engines.local.kv import Order, RowCache
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import Prefix
from sightline_sampler.engines.local.rows import Request, Rows
from sightline_sampler.engines.local.sampling import Shape, draw
from sightline_sampler.engines.local.stops import holds_stop
from sightline_sampler.engines.local.token_pass import pass_tokens

Outcome = tuple[Request, Candidate | BaseException]
Numbers = npt.NDArray[np.int64]


class Lane:
    """Rows of one policy. Only the decoding thread uses it."""

    def __init__(self, base: BaseModel, version: int) -> None:
        self._base = base
        self.version = version
        self._rows = Rows()
        self._cache: RowCache | None = None
        self._logits: torch.Tensor | None = None
        self._eos = np.array(sorted(base.eos_ids))
        self._axes = 0
        self._seen: dict[int, torch.Tensor] = {}  # by place: bool (vocabulary,); for rows with a repetition penalty

    def __len__(self) -> int:
        return len(self._rows)

    def reserved(self) -> int:
        """Maximum total slots that the rows may need."""
        rows, saved = self._rows, self._cache.saved() if self._cache is not None else 0
        return int((rows.length + rows.limit - rows.generated).sum()) - saved

    def requests(self) -> set[Request]:
        """The requests of the rows."""
        return set(self._rows.requests)

    def add(
        self, prefix: Prefix, source: Sequence[int], requests: Sequence[Request], counts: Sequence[int]
    ) -> list[list[int]]:
        """Add the next `counts[i]` candidates of `requests[i]`, whose prompt is row `source[i]` of the prefix.

        Returns:
            The places of each request's new rows, for `add_references`.
        """
        shifts, places = prefix.shift.tolist(), []
        for row, request, count in zip(source, requests, counts, strict=True):
            indices = range(request.admitted, request.admitted + count)
            places.append(self._rows.add(request, indices, prefix.length, shifts[row]))
            request.admitted += count
            if request.work.params.repetition_penalty != 1:
                self._seen |= {place: self._prompt_ids(request) for place in places[-1]}
        self._take(prefix, source, counts)
        return places

    def add_references(self, prefix: Prefix, row: int, request: Request, places: list[int]) -> None:
        """Add the reference rows of candidates just added; their prompt is row `row` of the prefix."""
        self._rows.add_references(request, places, prefix.length, int(prefix.shift[row]))
        self._take(prefix, [row], [len(places)])

    def _take(self, prefix: Prefix, source: Sequence[int], counts: Sequence[int]) -> None:
        start = len(self._rows) - sum(counts)
        self._axes = prefix.axes
        rows = torch.repeat_interleave(torch.tensor(source), torch.tensor(counts)).to(self._base.device)
        if self._cache is None:
            self._cache = RowCache(prefix.kept, fused=self._base.fused)
        new = prefix.logits[rows]
        self._logits = new if self._logits is None or not start else torch.cat([self._logits[:start], new])
        self._reorder(self._cache.insert(prefix.kept, rows), fresh=True)

    def drop(self, gone: Callable[[Request], bool]) -> int:
        """Drop the rows of requests that are `gone`; returns how many."""
        keep = np.fromiter((not gone(request) for request in self._rows.requests), bool, len(self._rows))
        if self._cache is not None:
            self._reorder(self._cache.keep(keep), fresh=True)
        return int((~keep).sum())

    def clear(self) -> None:
        """Drop all rows and free the buffers."""
        self._rows, self._cache, self._logits, self._seen = Rows(), None, None, {}

    def sample(self) -> list[Outcome]:
        """Sample the next token of every candidate; remove and return finished candidates."""
        rows, device = self._rows, self._base.device
        assert self._logits is not None
        logits = self._logits[: len(rows)]
        own = np.flatnonzero(~rows.reference)
        whole = len(own) == len(rows)
        processed = self._processed(logits, own)
        places, generated = rows.place[own], rows.generated[own]
        columns = (rows.temperature, rows.top_p, rows.top_k, rows.min_p)
        temperature, top_p, top_k, min_p = (torch.from_numpy(column[own]).to(device) for column in columns)
        shape = Shape(
            temperature,
            top_p,
            top_k,
            min_p,
            truncated=bool((rows.top_p < 1).any() or (rows.top_k > 0).any()),
            floored=bool((rows.min_p > 0).any()),
            greedy=bool((rows.temperature == 0).any()),
            unscaled=bool((rows.temperature == 1).all()),
        )
        drawn = draw(
            logits if whole else logits[torch.from_numpy(own).to(device)],
            torch.from_numpy(rows.uniforms[places, generated]).to(device),
            shape,
            self._base.suppressed,
            processed,
        )
        tokens = drawn.tokens.cpu().numpy()
        at = (places, generated)
        rows.tokens[at] = tokens
        rows.logprobs[at] = drawn.logprobs.cpu().numpy()
        rows.behaviour[at] = drawn.behaviour.cpu().numpy()
        rows.generated += 1
        for place, token in zip(places.tolist(), tokens.tolist(), strict=True) if self._seen else ():
            if place in self._seen:
                self._seen[place][token] = True
        broken = ~drawn.finite.cpu().numpy()
        eos = np.isin(tokens, self._eos)
        stopped = self._stopped(own) & ~eos
        done = eos | stopped | (generated + 1 >= rows.limit[own]) | broken
        out = [
            (rows.requests[own[i]], self._finish(int(own[i]), bool(eos[i]), bool(stopped[i]), bool(broken[i])))
            for i in np.flatnonzero(done).tolist()
        ]
        if out and self._cache is not None:
            if self._seen:
                for place in places[done].tolist():
                    self._seen.pop(place, None)
            self._reorder(self._cache.keep(~np.isin(rows.place, places[done])), fresh=False)
        return out

    def forward(self, model: Any) -> None:
        """Run the tokens just sampled; `model` has this lane's policy switched on."""
        rows, cache = self._rows, self._cache
        assert cache is not None
        self._reorder(cache.widen(rows.length), fresh=False)
        tokens = rows.tokens[rows.place, rows.generated - 1]
        self._logits = step(
            self._base, model, self.version, cache, tokens, rows.length, rows.length + rows.shift, self._axes
        )
        rows.length += 1

    def _processed(self, logits: torch.Tensor, own: Numbers) -> torch.Tensor | None:
        """The logits to sample from, for all candidates, if any is guided or penalised."""
        rows, device = self._rows, self._base.device
        guided, penalised = len(own) < len(rows), bool(self._seen)
        if not (guided or penalised):
            return None
        processed = logits[torch.from_numpy(own).to(device)].double()
        if guided:
            place = np.full(len(rows.uniforms), -1)
            place[rows.place[rows.reference]] = np.flatnonzero(rows.reference)
            paired = np.flatnonzero(place[rows.place[own]] >= 0)
            theirs = torch.from_numpy(place[rows.place[own[paired]]]).to(device)
            at = torch.from_numpy(paired).to(device)
            weight, beta = (torch.from_numpy(c[own[paired]]).to(device) for c in (rows.weight, rows.beta))
            processed[at] = guidance.guide(processed[at], logits[theirs], weight, beta, self._base.suppressed)
        if penalised:
            which = np.flatnonzero(rows.penalty[own] != 1)
            seen = torch.stack([self._seen[place] for place in rows.place[own[which]].tolist()])
            penalty = torch.from_numpy(rows.penalty[own[which]]).to(device)
            at = torch.from_numpy(which).to(device)
            processed[at] = guidance.penalise(processed[at], seen, penalty)
        return processed

    def _stopped(self, own: Numbers) -> npt.NDArray[np.bool_]:
        """Which candidates' texts contain a stop string since the last sampled token."""
        rows, found = self._rows, np.zeros(len(own), bool)
        for i, row in enumerate(own.tolist()):
            if stop := rows.requests[row].work.params.stop:
                ids = rows.tokens[rows.place[row], : rows.generated[row]].tolist()
                found[i] = holds_stop(self._base.tokenizer, ids, stop)
        return found

    def _prompt_ids(self, request: Request) -> torch.Tensor:
        seen = torch.zeros(self._base.vocabulary, dtype=torch.bool, device=self._base.device)
        ids = request.prepared.ids.to(self._base.device)
        seen[ids[ids < self._base.vocabulary]] = True
        return seen

    def _finish(self, row: int, eos: bool, stopped: bool, broken: bool) -> Candidate | BaseException:
        rows = self._rows
        if broken:
            return not_finite(self.version)
        n, place, index = int(rows.generated[row]), int(rows.place[row]), int(rows.index[row])
        return Candidate(
            index=index,
            text="",
            token_ids=rows.tokens[place, :n].copy(),
            logprobs=rows.logprobs[place, :n].copy(),
            behaviour_logprobs=rows.behaviour[place, :n].copy(),
            finish_reason="eos" if eos else "stop" if stopped else "length",
            seed=rows.requests[row].work.seeds[index],
            policy_version=self.version,
        )

    def _reorder(self, order: Order, *, fresh: bool) -> None:
        """Follow the cache. Logits move too while they are `fresh`: from a forward pass until tokens are sampled."""
        count = len(self._rows)
        if len(order) == count and bool((order == np.arange(count)).all()):
            return
        self._rows.reorder(order)
        if fresh and self._logits is not None:
            self._logits = self._logits[torch.from_numpy(order).to(self._base.device)]


def step(
    base: BaseModel,
    model: Any,
    version: int,
    cache: RowCache,
    tokens: Numbers,
    lengths: Numbers,
    places: Numbers,
    axes: int,
) -> torch.Tensor:
    """Pass one token per row, at the row's position, to the model and to the cache, which is wide enough.

    Args:
        base: the base model's facts.
        model: the model to call, its policy switched on.
        version: the policy's version.
        cache: the rows' keys and values.
        tokens: (rows,).
        lengths: (rows,), tokens in the cache.
        places: (rows,), the tokens' positions for the model.
        axes: number of position dimensions, for models with several; otherwise 0.

    Returns:
        Logits (at least rows, vocabulary); those beyond the rows have no meaning.
    """
    cache.aim(lengths, base.min_rows)
    count, device = len(tokens), base.device
    if base.graphs is not None:
        played = base.graphs.run(model, version, cache, torch.from_numpy(tokens), torch.from_numpy(places), axes)
        if played is not None:
            return played
    padded = max(count, base.min_rows)
    ids = np.zeros(padded, np.int64)  # the rows beyond `count` exist only for the kernels
    positions = np.zeros(padded, np.int64)
    ids[:count] = tokens
    positions[:count] = places
    given, at = (torch.from_numpy(column).to(device)[:, None] for column in (ids, positions))
    return pass_tokens(model, given, at, axes, cache, base.dtype)
