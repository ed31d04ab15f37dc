"""Meanings: what each curve says and when to worry, and which of a run's numbers are worth a worry.

The same sentences stand in the dashboards' panels (`helm/sightline/files/dashboards`) and in docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

MEANINGS = {
    "chair_s": (
        "Share of held-out captions that name an object which is not in the picture. Down is good; worry when it "
        "rises above the base model's (iteration 0), or falls only because captions get shorter."
    ),
    "chair_i": (
        "Share of all objects that captions mention which are not in the picture. Down is good; worry when it "
        "rises while CHAIR_s falls: fewer captions are wrong, but those are wrong in more."
    ),
    "cover": (
        "Share of a picture's objects that its caption names. Worry when it falls with CHAIR: the policy "
        "hallucinates less by saying less."
    ),
    "clip_score": (
        "What the scorer thinks of held-out captions, the reward that is trained for. Worry when it rises while "
        "CHAIR rises or cover falls: the policy pleases the scorer, not the eye (reward hacking)."
    ),
    "mean_tokens": (
        "Mean length of held-out captions. Worry when it drifts by more than a quarter: length alone moves CHAIR, "
        "cover and the reward."
    ),
    "pope_f1": (
        "F1 of yes/no questions after objects. Worry when it falls while captions get better: the policy unlearns "
        "to answer, or says yes to everything."
    ),
    "kl_to_base": (
        "How far the policy is from the base model: KL on its own held-out samples (estimator k3, never below 0), "
        "nats a response. It grows with training; worry when it leaps, or passes 50: what no pair asks for may be "
        "forgotten. Raise dpo.beta."
    ),
    "logps": (
        "Mean log-probability of the pairs' texts, nats a response. Both falling together is DPO's known drift; "
        "worry when the chosen one falls far: the policy then writes neither."
    ),
    "margin": (
        "How much more the update raised the chosen texts than the rejected ones against the base model, times "
        "beta. It should be above 0 and grow; below 0 the policy prefers what it was told not to: pairs, labels or"
        " rate are wrong."
    ),
    "accuracy": (
        "Share of pairs in which the update raised the chosen text more than the rejected one. 0.5 is a coin; "
        "worry below it, and above 0.99, when pairs are too easy to teach anything."
    ),
    "pairs": (
        "Prompts of each iteration that gave a pair, and why the others gave none. Worry when less than a fifth "
        "give one, or one reason grows: the policy's candidates get alike, or a filter is too strict."
    ),
    "seconds": (
        "Wall time of each stage. Worry when one grows from iteration to iteration: texts get longer, a service is"
        " short of machines, or the disk is slow."
    ),
}
"""Curve -> its sentences."""

KL_FAR = 50.0
"""Nats a response, as in the alert SightlineKlHigh."""


def worries(rows: Sequence[Mapping[str, float]], updates: Mapping[int, Mapping[str, float]]) -> dict[str, list[str]]:
    """What of a run's numbers is worth a worry: curve -> sentences, each with its iterations and values.

    Args:
        rows: what each evaluation measured, the base model's first.
        updates: iteration -> the update's metrics.
    """
    evaluated = {int(row["iteration"]): row for row in rows}
    found = {
        "margin": _where(updates, "margin", lambda value: value < 0, "below 0, so the rejected texts gained more"),
        "accuracy": _where(updates, "accuracy", lambda value: value < 0.5, "below 0.5, worse than a coin"),
        "kl_to_base": _where(evaluated, "kl_to_base", lambda value: value > KL_FAR, f"above {KL_FAR:.0f}"),
        "clip_score": _hacked(rows),
    }
    return {curve: warnings for curve, warnings in found.items() if warnings}


def _where(numbers: Mapping[int, Mapping[str, float]], name: str, bad: Callable[[float], bool], what: str) -> list[str]:
    at = {number: row[name] for number, row in sorted(numbers.items()) if name in row and bad(row[name])}
    if not at:
        return []
    values = ", ".join(f"{value:.3g} in iteration {number}" for number, value in at.items())
    return [f"{name} is {what}: {values}"]


def _hacked(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The reward is above the base model's, and so is hallucination, or cover is below: each beyond its interval."""
    if len(rows) < 2:
        return []
    base, last = rows[0], rows[-1]
    if last.get("clip_score", 0.0) <= base.get("clip_score", float("inf")):
        return []
    warnings = []
    if last.get("chair_s_change_low", 0.0) > 0:
        warnings.append("the reward is above the base model's, and so is CHAIR_s: reward hacking")
    if last.get("cover_change_high", 0.0) < 0:
        warnings.append("the reward is above the base model's, but cover is below it: reward hacking by saying less")
    return warnings
