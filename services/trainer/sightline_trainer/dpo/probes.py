"""How many probes are needed to prove that an update arrived: more for a smaller change.

The sampler's gate (`policies/gate.py` there) correlates the engine's change of each token's log-prob with the
trainer's. With a change of standard deviation s and noise n in each score, a correct engine shows r = s / sqrt(s^2 + 2
n^2). Weights that did not arrive show 0 +- 1 / sqrt(tokens); the gate requires four times that. So 4 / sqrt(tokens)
must be at most half of r: (8 / r)^2 tokens, 64 for a clear update in float32, 190 in bfloat16, 1600 at the gate's least
r, 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_PAIRS = 32
"""Pairs whose responses may be probes: 64 rows of a forward pass without gradients, before and after the update."""
LEAST_PAIRS = 4
_SIGMAS = 4.0  # as in the gate
_NOISE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
"""Standard deviation between an engine's and the trainer's log-probs, in nats a token."""
LEAST_CORRELATION = 0.2
"""The gate's minimum: it refuses a lower correlation, regardless of the number of tokens."""


def correlation(change: float, noise: float) -> float:
    """The correlation that the gate sees for an update that arrived, from standard deviations in nats a token."""
    return change / float(np.sqrt(change**2 + 2 * noise**2)) if change > 0 else 0.0


def tokens_needed(change: float, dtype: str) -> int:
    """Number of probe tokens that show a change with this standard deviation, in nats a token."""
    return int(np.ceil((2 * _SIGMAS / max(correlation(change, _NOISE[dtype]), LEAST_CORRELATION)) ** 2))


def responses_needed(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], dtype: str) -> int | None:
    """How many of the responses to send, counted from the first; None if all of them are too few.

    Args:
        before, after: log-probs of each response's tokens under the policy before and after the update, in nats.
        dtype: the recipe's `dpo.dtype`.
    """
    tokens = 0
    changes: list[float] = []
    for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
        changes += (np.asarray(new) - np.asarray(old)).tolist()
        tokens += len(new)
        if number >= 2 * LEAST_PAIRS and tokens >= tokens_needed(float(np.std(changes)), dtype):
            return number
    return None
