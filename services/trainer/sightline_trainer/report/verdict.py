"""Verdict: a run in one sentence, from its numbers. If there is an interval against the base model, it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sightline_trainer.report.meanings import worries

Numbers = Mapping[str, float]
STILL = 0.05
"""Nats a response: a policy nearer to the base model than this has not moved."""
STALLED = 0.05
"""Share of the first update's norm below which a later update counts as no change."""
FEW_PAIRS = 0.25
"""Share of the first iteration's pairs below which pairs run out."""


def verdict(
    state: str,
    error: str,
    rows: Sequence[Numbers],
    updates: Mapping[int, Numbers],
    counts: Mapping[int, Mapping[str, int]],
) -> str:
    """One sentence.

    Args:
        state: the run's.
        error: why it failed, if it did.
        rows: the metrics of each evaluation, the base model's first.
        updates: iteration -> the update's metrics.
        counts: iteration -> pairs kept.
    """
    if state == "failed":
        return f"It failed: {error}" if error else "It failed."
    if len(rows) < 2:
        return "Nothing to judge yet: the first policy has not been measured."
    base, last = rows[0], rows[-1]
    if hacked := worries(rows, updates).get("clip_score"):
        return f"{hacked[0][0].upper()}{hacked[0][1:]}."
    pairs = [found.get("pairs", 0) for _, found in sorted(counts.items())]
    if len(pairs) > 1 and pairs[0] and pairs[-1] < FEW_PAIRS * pairs[0]:
        return f"Pairs run out: {pairs[-1]} in the last iteration, {pairs[0]} in the first; more of them teach little."
    if abs(last.get("kl_to_base", 1.0)) < STILL and "kl_to_base" in last:
        return f"The policy stopped moving: {last['kl_to_base']:.3f} nats a response from the base model."
    norms = [found["update_norm"] for _, found in sorted(updates.items()) if "update_norm" in found]
    if len(norms) > 1 and norms[-1] < STALLED * norms[0]:
        return (
            f"The policy stopped moving: the last update changed the weights by {norms[-1]:.2g}, the first by "
            f"{norms[0]:.2g} (L2 norm)."
        )
    if len(rows) > 2 and "chair_s" in last:
        before = rows[-2].get("chair_s", last["chair_s"])
        if last["chair_s"] > before + max(0.02, 0.2 * before):
            return f"The last iteration made it worse: CHAIR_s {before:.3f} before, {last['chair_s']:.3f} now."
    if "chair_s" not in last or "chair_s" not in base:
        return _reward_alone(base, last)
    low, high = last.get("chair_s_change_low"), last.get("chair_s_change_high")
    told = f"CHAIR_s {base['chair_s']:.3f} to {last['chair_s']:.3f}"
    if low is not None and high is not None and low <= 0 <= high:
        return f"No clear change of hallucination yet: {told}, which may be chance."
    if last["chair_s"] < base["chair_s"]:
        cover = last.get("cover", 0.0) - base.get("cover", 0.0)
        lost = f", and cover lost {-cover:.3f}" if cover < -0.02 else ", cover kept"
        return f"It hallucinates less: {told}{lost}."
    return f"It hallucinates more than the base model: {told}."


def _reward_alone(base: Numbers, last: Numbers) -> str:
    if "clip_score" not in base or "clip_score" not in last:
        return "None of this verdict's metrics was measured."
    what = "up" if last["clip_score"] > base["clip_score"] else "down"
    return (
        f"The reward is {what}, {base['clip_score']:.2f} to {last['clip_score']:.2f}; hallucination was not measured."
    )
