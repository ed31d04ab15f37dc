"""Rows of one policy decoded together: one token each per step; finished ones leave, new ones join at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sightline_chassis.errors import InternalError

from sightline_sampler.engines.kv import Order, RowCache
from sightline_sampler.engines.model import BaseModel
from sightline_sampler.engines.prefill import Prefix
from sightline_sampler.engines.rows import Finished, Request, Rows
from sightline_sampler.engines.sampling import draw


class Lane:
    """Rows of one policy. Only the decoding thread touches it."""

    def __init__(self, base: BaseModel, version: int) -> None:
        self._base = base
        self.version = version
        self._rows = Rows()
        self._cache: RowCache | None = None
        self._logits: torch.Tensor | None = None
        self._eos = np.array(sorted(base.eos_ids))
        self._three_dimensional = False
        # Four dimensions: transformers makes no mask of its own. The cache brings one for each of its segments.
        self._no_mask = torch.zeros((1, 1, 1, 1), dtype=base.dtype, device=base.device)

    def __len__(self) -> int:
        return len(self._rows)

    def reserved(self) -> int:
        """Slots that the rows may come to need, all together."""
        rows = self._rows
        return int((rows.length + rows.limit - rows.generated).sum())

    def requests(self) -> set[Request]:
        """Whose rows these are."""
        return set(self._rows.requests)

    def add(self, prefix: Prefix, source: Sequence[int], requests: Sequence[Request], counts: Sequence[int]) -> None:
        """Adds the next `counts[i]` candidates of `requests[i]`, whose prompt is row `source[i]` of the prefix."""
        start, device = len(self._rows), self._base.device
        shifts = None if prefix.shift is None else prefix.shift.tolist()
        for row, request, count in zip(source, requests, counts, strict=True):
            indices = range(request.admitted, request.admitted + count)
            self._rows.add(request, indices, prefix.length, 0 if shifts is None else shifts[row])
            request.admitted += count
        self._three_dimensional = shifts is not None
        rows = torch.repeat_interleave(torch.tensor(source), torch.tensor(counts)).to(device)
        if self._cache is None:
            self._cache = RowCache(prefix.layers)
        new = prefix.logits[rows]
        self._logits = new if self._logits is None or not start else torch.cat([self._logits[:start], new])
        self._reorder(self._cache.insert(prefix.layers, rows), fresh=True)

    def drop(self, gone: Callable[[Request], bool]) -> int:
        """Drops the rows of requests that are `gone`; how many."""
        keep = np.fromiter((not gone(request) for request in self._rows.requests), bool, len(self._rows))
        if self._cache is not None:
            self._reorder(self._cache.keep(keep), fresh=True)
        return int((~keep).sum())

    def clear(self) -> None:
        """Drops all rows and frees the buffers."""
        self._rows, self._cache, self._logits = Rows(), None, None

    def sample(self) -> list[tuple[Request, Finished | BaseException]]:
        """Draws the next token of every row; takes out and gives the candidates that it finishes."""
        rows, logits, device = self._rows, self._logits, self._base.device
        assert logits is not None
        count = len(rows)
        truncated = bool((rows.top_p < 1).any() or (rows.top_k > 0).any())
        drawn = draw(
            logits[:count],
            torch.from_numpy(rows.uniforms[rows.home, rows.generated]).to(device),
            torch.from_numpy(rows.temperature).to(device),
            torch.from_numpy(rows.top_p).to(device),
            torch.from_numpy(rows.top_k).to(device),
            self._base.suppressed,
            truncated=truncated,
        )
        tokens = drawn.tokens.cpu().numpy()
        at = (rows.home, rows.generated)
        rows.tokens[at] = tokens
        rows.logprobs[at] = drawn.logprobs.cpu().numpy()
        rows.behaviour[at] = drawn.behaviour.cpu().numpy()
        rows.generated += 1
        broken = ~drawn.finite.cpu().numpy()
        eos = np.isin(tokens, self._eos)
        done = eos | (rows.generated >= rows.limit) | broken
        out = [
            (rows.requests[i], self._finish(i, bool(eos[i]), bool(broken[i]))) for i in np.flatnonzero(done).tolist()
        ]
        if out and self._cache is not None:
            self._reorder(self._cache.keep(~done), fresh=False)
        return out

    def forward(self, model: Any) -> None:
        """Runs the tokens just drawn; `model` has this lane's policy switched on."""
        rows, device = self._rows, self._base.device
        cache = self._cache
        assert cache is not None
        self._reorder(cache.widen(rows.length), fresh=False)
        cache.aim(rows.length)
        count = len(rows)
        padded = max(count, self._base.min_rows)
        ids = np.zeros(padded, np.int64)  # the rows beyond `count` are there for the kernels only
        positions = np.zeros(padded, np.int64)
        ids[:count] = rows.tokens[rows.home, rows.generated - 1]
        positions[:count] = rows.length + rows.shift
        position_ids = torch.from_numpy(positions).to(device)[:, None]
        if self._three_dimensional:
            position_ids = position_ids.expand(3, -1, -1)
        out = model(
            input_ids=torch.from_numpy(ids).to(device)[:, None],
            position_ids=position_ids,
            attention_mask=self._no_mask,
            past_key_values=cache,
            use_cache=True,
        )
        self._logits = out.logits[:, -1]
        rows.length += 1

    def _finish(self, row: int, eos: bool, broken: bool) -> Finished | BaseException:
        rows = self._rows
        if broken:
            return InternalError(f"policy {self.version} gave logits that are not finite", reason="LOGITS_NOT_FINITE")
        n, home = int(rows.generated[row]), int(rows.home[row])
        return Finished(
            index=int(rows.index[row]),
            token_ids=rows.tokens[home, :n].copy(),
            logprobs=rows.logprobs[home, :n].copy(),
            behaviour=rows.behaviour[home, :n].copy(),
            reason="eos" if eos else "length",
            version=self.version,
        )

    def _reorder(self, order: Order, *, fresh: bool) -> None:
        """Follows the cache. Logits move too while they are `fresh`: from a forward until tokens are drawn."""
        count = len(self._rows)
        if len(order) == count and bool((order == np.arange(count)).all()):
            return
        self._rows.reorder(order)
        if fresh and self._logits is not None:
            self._logits = self._logits[torch.from_numpy(order).to(self._base.device)]
