"""One choice of vLLM's stream, assembled from its chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import Candidate, FinishReason


@dataclasses.dataclass(slots=True)
class Choice:
    """The received part of a choice.

    Attributes:
        index: index among the request's `n`.
        prompt_tokens: number of the prompt's tokens, image tokens included; 0 until known.
        spans: weight versions of its tokens, if the server reports them.
    """

    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish: str = ""
    stop_reason: str | int | None = None
    prompt_tokens: int = 0
    spans: Sequence[dict[str, Any]] | None = None

    @property
    def aborted(self) -> bool:
        """Whether the server aborted it."""
        return self.finish not in ("stop", "length")

    def add(self, part: dict[str, Any], prompt_token_ids: Sequence[int] | None) -> None:
        """Add a chunk's part."""
        if prompt_token_ids:
            self.prompt_tokens = len(prompt_token_ids)
        self.text += (part.get("delta") or {}).get("content") or ""
        self.token_ids += part.get("token_ids") or []
        self.logprobs += [entry["logprob"] for entry in (part.get("logprobs") or {}).get("content") or []]
        self.finish = part.get("finish_reason") or ""
        self.stop_reason = part.get("stop_reason")
        self.spans = part.get("weight_versions", self.spans)

    def candidate(
        self, index: int, seed: int, version: int, params: SamplingParams, *, raw: bool, biased: bool
    ) -> Candidate:
        """The candidate.

        Args:
            index: index in the request.
            seed: the seed that gives it again.
            version: the version that sampled it.
            params: how it was sampled.
            raw: whether log-probs are from before temperature and truncation.
            biased: whether some tokens were excluded, so that even plain sampling is not the policy.
        """
        logprobs, none = np.array(self.logprobs, dtype=np.float32), np.zeros(0, dtype=np.float32)
        greedy = params.temperature == 0
        processed = params.temperature != 1 or params.top_p != 1 or bool(params.options() - {"stop"})
        finish: FinishReason = "length"
        if self.finish == "stop":
            finish = "stop" if isinstance(self.stop_reason, str) else "eos"
        behaviour = logprobs if not raw or not (processed or biased) else None
        return Candidate(
            index=index,
            text=self.text,
            token_ids=np.array(self.token_ids, dtype=np.int64),
            logprobs=logprobs if raw or not (processed or biased) else none,
            behaviour_logprobs=np.zeros_like(logprobs) if greedy else behaviour,
            finish_reason=finish,
            seed=seed,
            policy_version=version,
        )
