"""The book-keeping of a lane's rows, without the model: their requests, lengths and sampled tokens.

A guided candidate has two rows: its own, and a reference row that gets the same tokens after another prompt. Both have
the same place, so tokens sampled for one are available to the other.
"""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
from sightline.sampler.types import Candidate

from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import SampleWork
from sightline_sampler.engines.local import guidance
from sightline_sampler.engines.local.kv import SLOT_STEP, Order, round_up, shares
from sightline_sampler.engines.local.prompts import Prepared


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One prompt on its way through the engine. `version` and `limit` are set by the decoding thread and its caller.

    `events` get its candidates, whose texts are still to be decoded, or an error.

    `reference` is the prompt of the reference rows, where sampling is guided.
    """

    work: SampleWork
    prepared: Prepared
    limit: int
    events: asyncio.Queue[Candidate | BaseException]
    reference: Prepared | None = None
    version: int = -1
    admitted: int = 0
    left: int = 0
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.work.seeds)

    @property
    def rows_each(self) -> int:
        """Number of rows of one candidate."""
        return 1 if self.reference is None else 2

    def slots_each(self) -> int:
        """Maximum cache slots that one candidate may need."""
        prompts = [self.prepared] if self.reference is None else [self.prepared, self.reference]
        lengths = [len(prompt.ids) for prompt in prompts]
        if shares(lengths[0]):  # all candidates together store the prompts once
            lengths = [-(-length // len(self.work.seeds)) for length in lengths]
        return sum(round_up(length + self.limit, SLOT_STEP) for length in lengths)


class Rows:
    """Book-keeping of the rows. `reorder` follows the cache; large per-row data stays in its `place`."""

    _FLAT = (
        "index", "length", "shift", "generated", "limit", "temperature", "top_p", "top_k", "min_p", "penalty", "weight",
        "beta", "place", "reference",
    )  # fmt: skip
    _WIDE = ("uniforms", "tokens", "logprobs", "behaviour")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.index = np.empty(0, np.int64)
        self.length = np.empty(0, np.int64)  # tokens in the cache, which is the slot of the next one
        self.shift = np.empty(0, np.int64)
        self.generated = np.empty(0, np.int64)
        self.limit = np.empty(0, np.int64)
        self.temperature = np.empty(0, np.float64)
        self.top_p = np.empty(0, np.float64)
        self.top_k = np.empty(0, np.int64)
        self.min_p = np.empty(0, np.float64)
        self.penalty = np.empty(0, np.float64)
        self.weight = np.empty(0, np.float64)  # weight of the clean row in guided logits
        self.beta = np.empty(0, np.float64)
        self.place = np.empty(0, np.int64)
        self.reference = np.empty(0, np.bool_)
        self.uniforms = np.empty((0, 0), np.float64)
        self.tokens = np.empty((0, 0), np.int64)
        self.logprobs = np.empty((0, 0), np.float32)
        self.behaviour = np.empty((0, 0), np.float32)
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: Request, indices: range, length: int, shift: int) -> list[int]:
        """Add candidates `indices` of a request; returns their places."""
        place = self._places(len(indices), request.limit)
        self.uniforms[place, : request.limit] = seeds.uniforms([request.work.seeds[i] for i in indices], request.limit)
        self._append(request, indices, length, shift, place, reference=False)
        return place

    def add_references(self, request: Request, places: list[int], length: int, shift: int) -> None:
        """Add the reference rows of the candidates at `places`."""
        self._append(request, range(len(places)), length, shift, places, reference=True)

    def _append(
        self, request: Request, indices: range, length: int, shift: int, place: list[int], *, reference: bool
    ) -> None:
        count, params = len(indices), request.work.params
        self.requests += [request] * count
        weight, beta = guidance.weights(params.guidance)
        new = {
            "index": indices,
            "length": length,
            "shift": shift,
            "generated": 0,
            "limit": request.limit,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "penalty": params.repetition_penalty,
            "weight": weight,
            "beta": beta,
            "place": place,
            "reference": reference,
        }
        for name in self._FLAT:
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.broadcast_to(np.asarray(new[name], column.dtype), count)]))

    def reorder(self, order: Order) -> None:
        """Row i becomes the former row order[i]; rows that are not in `order` are removed."""
        if len(order) < len(self):
            gone = np.delete(np.arange(len(self)), order)
            self._free += self.place[gone[~self.reference[gone]]].tolist()
        self.requests = [self.requests[i] for i in order.tolist()]
        for name in self._FLAT:
            setattr(self, name, getattr(self, name)[order])

    def _places(self, count: int, width: int) -> list[int]:
        have, wide = self.uniforms.shape
        more = max(0, count - len(self._free))
        if more or width > wide:
            rows, width = have + max(more, have // 2 if more else 0), max(width, wide)
            for name in self._WIDE:
                old = getattr(self, name)
                new = np.zeros((rows, width), old.dtype)
                new[:have, :wide] = old
                setattr(self, name, new)
            self._free += range(have, rows)
        return [self._free.pop() for _ in range(count)]
