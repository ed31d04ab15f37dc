"""Provable: whether an iteration's update will be large enough for the arrival gate, estimated from the trial's step.

In bfloat16, sampler and trainer differ by rounding, and the gate compares the change of log-probs with that. A first
run with few prompts at a small rate stays below it: the run would sample, score and train, and then be refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sightline_trainer.dpo.probes import LEAST_CORRELATION, correlation
from sightline_trainer.preflight.finding import Finding
from sightline_trainer.recipe import Recipe

_RATE = 1e-3  # at this rate, a step's effect exceeds bfloat16's rounding
_STD = 1.25  # standard deviation of a normal distribution over its mean absolute value


def trial_rate(recipe: Recipe) -> float:
    """The trial's learning rate: large enough to see its effect, which for a new LoRA's first step is linear in it."""
    return recipe.dpo.learning_rate if recipe.dpo.train == "full" else max(_RATE, recipe.dpo.learning_rate)


def too_small(recipe: Recipe, changes: Sequence[float], *, noise: float, pairs: int) -> list[Finding]:
    """A warning if even steps in the same direction would change too little.

    Args:
        changes: the change of each probe token's log-prob by the trial's step, at `trial_rate`.
        noise: mean |log-prob difference| between sampler and trainer, in nats a token.
        pairs: maximum pairs of one iteration.
    """
    if len(changes) < 2 or recipe.dpo.train == "full":
        return []
    steps = max(1.0, math.ceil(pairs / (recipe.dpo.batch_size * recipe.dpo.accumulate)) * recipe.dpo.epochs)
    change = float(np.std(changes)) * recipe.dpo.learning_rate / trial_rate(recipe) * steps
    if correlation(change, _STD * noise) >= LEAST_CORRELATION:
        return []
    return [
        Finding(
            "UPDATE_TOO_SMALL",
            f"an iteration of {steps:.0f} steps at a rate of {recipe.dpo.learning_rate:g} changes log-probs by at most "
            f"{change:.1g} nats a token, and sampler and trainer differ by {noise:.1g} before it: the arrival gate "
            "will refuse it as too small to be proved",
            "train more steps (data.prompts_per_iteration), raise dpo.learning_rate, or compute in float32 (dpo.dtype "
            "and the sampler's engine.dtype)",
            "warning",
        )
    ]
