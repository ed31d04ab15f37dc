"""The arrival gate: compares the log-probs of engine and trainer for the same tokens, to decide whether the weights
arrived.

Faults in online loops answer 200 OK with the old weights: an adapter whose keys match nothing, one that is loaded but
never named, cached prefixes of the previous version, last week's files under a new name. A plain threshold on |engine -
trainer| cannot detect this if one update moves log-probabilities less than the engine's own rounding (one DPO iteration
at a rate of 1e-6 against bfloat16 noise of 0.05 a token). So the *change* is compared, token by token: the engine's new
minus its previous log-prob, against the trainer's new minus previous.

With the trainer's change of standard deviation s and the engine's noise n in each of its two scores, a policy that
arrived shows a correlation of about s / sqrt(s^2 + 2 n^2): over 0.999 in float32, 0.58 for s = n = 0.05 (a clear update
in bfloat16), 0.27 for s = 0.02. Weights that did not arrive show 0 +- 1 / sqrt(tokens) (or no change at all, in any
bit). Hence `min_correlation` 0.2, and never less than `significance` / sqrt(tokens): at 4, chance passes once in 30
000.

If the base model answers instead of a policy, the change is minus the previous policy, which may correlate with the
trainer's step. So the new scores must also be as near to the trainer's as the previous ones: within `gap_factor` times
the previous gap, which is the noise between engine and trainer, measured on weights that were proved before; 0.001 if
both compute alike.

`max_gap` bounds both: 0.010 to 0.018 was seen between a healthy engine and its trainer (mean |difference| a token),
noise of standard deviation 0.05 gives 0.04, and a stale engine gave 0.2; 0.1 lies between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sightline.sampler.types import Arrival

from sightline_sampler.settings import GateSettings

Scores = npt.NDArray[np.float64]

_ALIKE = 1e-3  # nats a token: above the differences of float32 engines, below any relevant update


def judge(
    settings: GateSettings,
    *,
    engine: str,
    previous_version: int,
    probes: int,
    new: Scores,
    previous: Scores,
    trainer: Scores,
    trainer_previous: Scores | None,
    sampled: Sequence[tuple[Scores, Scores]] = (),
) -> Arrival:
    """Decide, with the reason.

    Args:
        settings: the thresholds.
        engine: the engine's name and version, for the report.
        previous_version: the version of `previous`.
        probes: number of responses with these tokens.
        new: the engine's log-probability of each probe token (n,) under the new policy, n >= 1.
        previous: the same under the previous one (n,).
        trainer: the trainer's under the new policy (n,).
        trainer_previous: the trainer's under the previous one (n,); None if unknown.
        sampled: for each candidate sampled from the new policy, its log-probabilities as sampled and as scored (m,).

    Returns:
        The report; `passed` and `reason` are the verdict.
    """
    change = new - previous
    moved, changed = float(np.abs(change).mean()), float((change != 0).mean())
    gap = float(np.abs(new - trainer).mean())
    previous_gap = trainer_moved = correlation = None
    required = 0.0
    if trainer_previous is not None:
        wanted = trainer - trainer_previous
        previous_gap, trainer_moved = float(np.abs(previous - trainer_previous).mean()), float(np.abs(wanted).mean())
        required = min(0.9, max(settings.min_correlation, settings.significance / float(np.sqrt(len(new)))))
        if len(new) > 1 and wanted.std() > 0 and change.std() > 0:
            correlation = float(np.corrcoef(change, wanted)[0, 1])
    noise = 0.0 if previous_gap is None else max(_ALIKE, settings.gap_factor * previous_gap)
    allowed = min(settings.max_gap, noise) if noise else settings.max_gap
    sampled_gap = float(np.abs(np.concatenate([a - b for a, b in sampled])).mean()) if sampled else None
    finite = all(
        np.isfinite(values).all() for values in (new, previous, *(array for pair in sampled for array in pair))
    )

    if not finite:
        reason = "the engine's scores are not finite"
    elif previous_gap is not None and not previous_gap <= settings.max_gap:
        reason = (
            f"already under version {previous_version} the engine's scores differ from the trainer's by "
            f"{previous_gap:.4f} nats a token (at most {settings.max_gap}): it has another base model, or prepares "
            "prompts and images differently"
        )
    elif changed == 0:
        reason = (
            f"its scores are those of version {previous_version} to the last bit: the new weights do not reach the "
            "forward pass (keys that match nothing, an adapter that is not named, a stale cache, or old files)"
        )
    elif trainer_moved == 0:
        reason = "the trainer's own scores do not differ between the two versions: these probes prove nothing"
    elif not gap <= allowed:
        reason = f"its scores differ from the trainer's by {gap:.4f} nats a token (at most {allowed:.4f})"
    elif trainer_previous is not None and (correlation is None or not correlation >= required):
        shown = "is unknown" if correlation is None else f"is {correlation:.3f}"
        small = _too_small(settings, trainer - trainer_previous, previous - trainer_previous, required)
        reason = f"the correlation of its change with the trainer's {shown} (at least {required:.3f} over {len(new)} "
        reason += f"tokens): {small or 'the engine answers with other weights'}"
    elif sampled_gap is not None and not sampled_gap <= settings.max_gap:
        reason = (
            f"candidates are not sampled from the scored weights: {sampled_gap:.4f} nats a token apart (at most "
            f"{settings.max_gap}); a prefix or image cache of another version, or requests that do not name the policy"
        )
    else:
        reason = ""
    return Arrival(
        passed=not reason,
        reason=reason,
        previous_version=previous_version,
        probes=probes,
        tokens=len(new),
        changed=changed,
        correlation=correlation,
        required_correlation=required,
        gap=gap,
        previous_gap=previous_gap,
        moved=moved,
        trainer_moved=trainer_moved,
        sampled_gap=sampled_gap,
        engine=engine,
    )


def _too_small(settings: GateSettings, wanted: Scores, apart: Scores, required: float) -> str:
    """Why these probes cannot prove an update even if it arrived, and what to do; empty if they can.

    Args:
        wanted: the trainer's change of each token's log-prob (n,).
        apart: engine minus trainer under the previous version (n,), the noise that the change must exceed.
        required: the correlation that the gate requires.
    """
    change, noise = float(wanted.std()), float(apart.std())
    # Below half of the noise, the trainer's own change may be only its rounding.
    sure = float(np.sqrt(max(0.0, change**2 - (noise / 2) ** 2)))
    honest = sure / float(np.hypot(sure, np.sqrt(2) * noise)) if sure > 0 else 0.0
    if honest >= required:
        return ""
    probes = ""
    if honest >= settings.min_correlation > 0:
        probes = f", or send {int(np.ceil((settings.significance / honest) ** 2))} probe tokens (publication.probes)"
    return (
        f"the update is too small to be proved: it changes log-probs by {change:.2g} nats a token, engine and trainer "
        f"differ by {noise:.2g}, so weights that arrived may show no more than {honest:.2f}. Train more steps, raise "
        f"dpo.learning_rate, or compute in float32 (dpo.dtype and the sampler's engine.dtype){probes}"
    )
