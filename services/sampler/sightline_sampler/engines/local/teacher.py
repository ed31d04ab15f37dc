"""Teacher forcing: the policy's log-probability of each token of a given response."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np
import torch
from sightline.sampler.types import TokenScores

from sightline_sampler.engines.base import Lease, not_finite
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import Prefiller, Prefix
from sightline_sampler.engines.local.prompts import Prepared
from sightline_sampler.engines.local.weights import Weights

Call: TypeAlias = Callable[[Callable[[], None]], Future[None]]
_IN_A_ROW = 8
"""Responses to one prompt that are scored before a response to another one that waits."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    prompt: tuple[bytes, str]  # its ids, and its images' digest
    lease: Lease
    prepared: Prepared
    token_ids: Sequence[int]
    scored: Future[TokenScores]


@dataclasses.dataclass(slots=True)
class _Shared:
    """The prefix that was run last, and how many responses were scored after it."""

    prompt: tuple[bytes, str]
    version: int
    prefix: Prefix
    used: int = 0


class Teacher:
    """Scores responses. A prompt runs once for all of its responses that wait; no prefix is kept for later ones.

    Args:
        base: the base model's facts.
        prefiller: runs the prompt.
        weights: the weights of all policies.
    """

    def __init__(self, base: BaseModel, prefiller: Prefiller, weights: Weights) -> None:
        self._base, self._prefiller, self._weights = base, prefiller, weights
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._shared: _Shared | None = None  # only the decoding thread uses it

    def score(self, call: Call, lease: Lease, prepared: Prepared, token_ids: Sequence[int]) -> Future[TokenScores]:
        """log p(token i | image, prompt, tokens before i), over the whole vocabulary, in float64 from the model's
        logits.

        The prompt runs as for sampling; the response follows in one forward pass on the prompt's cache, without pixels,
        so that an unusual id in it cannot disturb the count of image tokens.

        Args:
            call: runs a function on the decoding thread.
            lease: the policy; it is switched on.
            prepared: the prompt.
            token_ids: the response (n,), n >= 1.

        Returns:
            A future: (n,) float32, finite, and the policy. Its errors: InternalError if the policy gives non-finite
            logits, Unavailable if the engine ends before.

        Raises:
            Unavailable: the engine is ending.
        """
        prompt = prepared.ids.numpy().tobytes(), prepared.digest
        one = _Waiting(prompt, lease, prepared, token_ids, Future())
        with self._lock:
            self._waiting.append(one)
        try:
            done = call(self._next)
        except BaseException:
            with self._lock:
                self._waiting.remove(one)
            raise
        done.add_done_callback(self._failed)
        return one.scored

    def forget(self) -> None:
        """Drop the shared prefix, since weights change or leave. On the decoding thread."""
        self._shared = None

    def _failed(self, call: Future[None]) -> None:
        """A call that never ran: one response gets its error."""
        error = call.exception()
        if error is not None and (one := self._take()) is not None and one.scored.set_running_or_notify_cancel():
            one.scored.set_exception(error)

    def _next(self) -> None:
        one = self._take()
        if one is None:
            return
        if not one.scored.set_running_or_notify_cancel():
            self._let_go()
            return
        try:
            scores = self._scores(one)
        except BaseException as error:
            self._let_go()
            one.scored.set_exception(error)
        else:
            self._let_go()
            one.scored.set_result(scores)

    def _take(self) -> _Waiting | None:
        """The next one: the first with the shared prefix, otherwise the first of all."""
        with self._lock:
            if not self._waiting:
                return None
            place = 0
            if (shared := self._shared) is not None:
                same = [i for i, one in enumerate(self._waiting) if one.prompt == shared.prompt]
                if same and (shared.used < _IN_A_ROW or len(same) == len(self._waiting)):
                    place = same[0]
            return self._waiting.pop(place)

    def _let_go(self) -> None:
        """Drop the prefix unless another response waits for it."""
        with self._lock:
            if self._shared is not None and all(other.prompt != self._shared.prompt for other in self._waiting):
                self._shared = None

    def _scores(self, one: _Waiting) -> TokenScores:
        version, base = one.lease.bind(), self._base
        ids = torch.tensor(one.token_ids, dtype=torch.long, device=base.device)
        model = self._weights.use(version)
        if self._shared is None or (self._shared.prompt, self._shared.version) != (one.prompt, version):
            self._shared = None  # before the next one takes memory
            prefix = self._prefiller.run(model, [one.prepared], self._weights.vision_key(version))
            self._shared = _Shared(one.prompt, version, prefix)
        self._shared.used += 1
        logprobs = forced(base, model, self._shared.prefix, ids)
        if not bool(torch.isfinite(logprobs).all()):
            raise not_finite(version)
        return TokenScores(np.asarray(logprobs.cpu().numpy(), dtype=np.float32), version)


def forced(base: BaseModel, model: Any, prefix: Prefix, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (n,) of response tokens `ids` (n,) after the first prompt of a prefix, in float64."""
    logits = prefix.logits[:1]
    if len(ids) > 1:
        rows = prefix.logits.shape[0]  # the prefix may contain copies of the prompt
        places = torch.arange(prefix.length, prefix.length + len(ids) - 1, device=base.device)
        positions = places[None] + prefix.shift[:, None]
        if prefix.axes:
            positions = positions.expand(prefix.axes, -1, -1)
        out = model(
            input_ids=ids[None, :-1].repeat(rows, 1),
            position_ids=positions,
            past_key_values=prefix.kept.refilled(model.config),
            use_cache=True,
        )
        logits = torch.cat([logits, out.logits[0]])
    return torch.log_softmax(logits.double(), dim=-1).gather(1, ids[:, None])[:, 0]
