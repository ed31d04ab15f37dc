"""Divergence: a policy's KL to the base model, on its own samples.

    KL(policy || base) = sum over tokens of E_policy[r - 1 - log r],     r = base / policy of the token that was sampled

which is Schulman's estimator k3 ("Approximating KL Divergence", 2020), as in GRPO (Shao et al. 2024, arXiv 2402.03300):
each term is at least 0, its mean over the policy's own samples is the KL (by the chain rule, the sum over a response is
the KL of responses), and it varies less than -log r, whose mean over finite samples may be negative. Over texts of
another policy neither is a KL: the pairs of an update are such texts, and their mean log-ratio (`logratio_to_reference`
of an update) is often negative.

A response cut off at the maximum length adds its tokens up to there. Samples must come from the policy itself:
temperature 1 and no nucleus sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sightline.sampler import Capabilities

MOST_NATS = 50.0
"""Bound of a token's log-ratio, so that one impossible token does not make the mean infinite."""


def k3(policy: Sequence[float], base: Sequence[float]) -> float:
    """The sum of r - 1 - log r over a response's tokens, in nats, from their log-probs."""
    ratios = (max(-MOST_NATS, min(there - here, MOST_NATS)) for here, there in zip(policy, base, strict=True))
    return sum(math.expm1(ratio) - ratio for ratio in ratios)


def measurable(capabilities: Capabilities, *, temperature: float, top_p: float) -> bool:
    """Whether samples come from the policy itself, and the engine can score them under the base model while another
    policy answers."""
    return capabilities.scores and capabilities.multi_version and temperature == 1.0 and top_p == 1.0
