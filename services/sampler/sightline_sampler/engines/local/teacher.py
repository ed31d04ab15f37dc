"""Teacher forcing: the policy's log-probability of each token of a given response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sightline.sampler.types import Logprobs

from sightline_sampler.engines.base import not_finite
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import Prefiller, Prefix
from sightline_sampler.engines.local.prompts import Prepared
from sightline_sampler.engines.local.weights import Weights


def score(
    base: BaseModel, prefiller: Prefiller, weights: Weights, version: int, prepared: Prepared, token_ids: Sequence[int]
) -> Logprobs:
    """log p(token i | image, prompt, tokens before i), over the whole vocabulary, in float64 from the model's logits.

    The prompt runs as for sampling; the response follows in one forward pass on the prompt's cache, without pixels, so
    that an unusual id in it cannot disturb the count of image tokens.

    Args:
        base: the base model's facts.
        prefiller: runs the prompt.
        weights: the weights of all policies.
        version: the policy; it is switched on.
        prepared: the prompt.
        token_ids: the response (n,), n >= 1.

    Returns:
        (n,) float32, finite.

    Raises:
        InternalError: the policy gives non-finite logits.
    """
    ids = torch.tensor(token_ids, dtype=torch.long, device=base.device)
    model = weights.use(version)
    logprobs = forced(base, model, prefiller.run(model, [prepared], weights.vision_key(version)), ids)
    if not bool(torch.isfinite(logprobs).all()):
        raise not_finite(version)
    return np.asarray(logprobs.cpu().numpy(), dtype=np.float32)


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
