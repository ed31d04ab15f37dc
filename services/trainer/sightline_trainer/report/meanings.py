"""Meanings: what each curve shows and when to worry, and the warnings for a run's numbers.

The dashboards' panels (`helm/sightline/files/dashboards`) explain the same curves of a service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

MEANINGS = {
    "chair_s": (
        "Share of held-out captions that name an object that is not in the picture. Lower is better. Worry when it "
        "rises above the base model's (iteration 0), or falls only because captions get shorter."
    ),
    "chair_i": (
        "Share of mentioned objects that are not in the picture. Lower is better. Worry when it rises while CHAIR_s "
        "falls: fewer captions are wrong, but each of them has more errors."
    ),
    "cover": (
        "Share of a picture's objects that its caption names. Worry when it falls with CHAIR: the policy "
        "hallucinates less by saying less."
    ),
    "clip_score": (
        "Mean CLIPScore of held-out captions: the reward that the policy is trained for. Worry when it rises while "
        "CHAIR rises or cover falls: the policy pleases the scorer, but describes the picture worse (reward hacking)."
    ),
    "mean_tokens": (
        "Mean length of held-out captions. Worry when it changes by more than a quarter: length alone changes CHAIR, "
        "cover and the reward."
    ),
    "pope_f1": (
        "F1 of yes/no questions about objects. Worry when it falls while captions get better: the policy forgets how "
        "to answer, or says yes to everything."
    ),
    "kl_to_base": (
        "Distance of the policy from the base model: KL on its own held-out samples (estimator k3, never below 0), "
        "nats a response. It grows with training. Worry when it jumps or exceeds 50: the policy may forget what no "
        "pair trains. Raise dpo.beta."
    ),
    "logps": (
        "Mean log-probability of the pairs' texts, nats a response. Both falling together is DPO's known drift; "
        "worry when the chosen one falls far: the policy then writes neither."
    ),
    "margin": (
        "How much more the update raised the chosen texts than the rejected ones, compared with the base model, times "
        "beta. It should be above 0 and grow. Below 0 the policy prefers what it should avoid: pairs, labels or the "
        "rate are wrong."
    ),
    "accuracy": (
        "Share of pairs in which the update raised the chosen text more than the rejected one. 0.5 is chance. "
        "Worry below it, and above 0.99: then the pairs are too easy to teach anything."
    ),
    "pairs": (
        "Prompts of each iteration that gave a pair, and why the others gave none. Worry when less than a fifth "
        "give one, or one reason grows: the policy's candidates become alike, or a filter is too strict."
    ),
    "seconds": (
        "Wall time of each stage. Worry when one grows with each iteration: texts get longer, a service needs more "
        "machines, or the disk is slow."
    ),
}
"""Curve -> its sentences."""

KL_FAR = 50.0
"""Nats a response, as in the alert SightlineKlHigh."""
REWORDED = 0.4
"""Maximum change of a phrase's share of captions (`evaluation/wording.py`)."""
DRIFTED = 0.25
"""Maximum change of the mean length, as a share of the base model's."""
DEGENERATE = 0.05
"""Maximum rise of the share of degenerate captions over the base model's."""
TRUTH = {"chair_s": -1, "chair_i": -1, "cover": 1, "attribute_accuracy": 1, "relation_accuracy": 1, "degenerate": -1}
"""Metrics of captions from the truth, and which direction is good."""
_MOVED = f"above {REWORDED}: captions gained or lost a phrase (wording.json names it), which no picture explains"

_PREFERRED = f"above {REWORDED}: chosen and rejected sides differ in a phrase; the reward prefers a way of speaking"
_LONGER = f"off by more than {DRIFTED:.0%}: the reward prefers long or short texts"


def worries(rows: Sequence[Mapping[str, float]], updates: Mapping[int, Mapping[str, float]]) -> dict[str, list[str]]:
    """The warnings for a run's numbers: curve -> sentences, each with its iterations and values.

    Args:
        rows: the metrics of each evaluation, the base model's first.
        updates: iteration -> the update's metrics.
    """
    evaluated = {int(row["iteration"]): row for row in rows}
    found = {
        "margin": _where(updates, "margin", lambda value: value < 0, "below 0, so the rejected texts gained more"),
        "accuracy": _where(updates, "accuracy", lambda value: value < 0.5, "below 0.5, worse than chance"),
        "kl_to_base": _where(evaluated, "kl_to_base", lambda value: value > KL_FAR, f"above {KL_FAR:.0f}"),
        "clip_score": [*_hacked(rows), *_disliked(rows)],
        "wording": _where(evaluated, "wording", lambda value: value > REWORDED, _MOVED),
        "mean_tokens": _drifted(rows),
        "pairs": [
            *_where(evaluated, "pairs_wording", lambda value: value > REWORDED, _PREFERRED),
            *_where(evaluated, "pairs_length", lambda value: abs(value) > DRIFTED, _LONGER),
        ],
        **{curve: _worse(rows, curve, up) for curve, up in TRUTH.items()},
    }
    return {curve: warnings for curve, warnings in found.items() if warnings}


def _where(numbers: Mapping[int, Mapping[str, float]], name: str, bad: Callable[[float], bool], what: str) -> list[str]:
    at = {number: row[name] for number, row in sorted(numbers.items()) if name in row and bad(row[name])}
    if not at:
        return []
    values = ", ".join(f"{value:.3g} in iteration {number}" for number, value in at.items())
    return [f"{name} is {what}: {values}"]


def _hacked(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The reward rose above the base model's, but hallucination did too, or cover fell: each beyond its interval."""
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


def _disliked(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The scorer rates captions below the base model's, beyond both intervals."""
    if len(rows) < 2 or not rows[-1].get("clip_score_high", 1e9) < rows[0].get("clip_score_low", -1e9):
        return []
    return ["the scorer rates captions below the base model's: the reward does not measure likeness to the picture"]


def _drifted(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Captions are far longer or shorter than the base model's."""
    if len(rows) < 2 or not rows[0].get("mean_tokens") or "mean_tokens" not in rows[-1]:
        return []
    change = rows[-1]["mean_tokens"] / rows[0]["mean_tokens"] - 1
    if abs(change) <= DRIFTED:
        return []
    return [f"captions are {abs(change):.0%} {'longer' if change > 0 else 'shorter'} than the base model's"]


def _worse(rows: Sequence[Mapping[str, float]], name: str, up: int) -> list[str]:
    """Metrics from the truth that are worse than the base model's: by the paired interval if there is one, otherwise
    beyond both intervals; cover by more than 0.03, degenerate captions by more than their bound."""
    if len(rows) < 2 or name not in rows[0] or name not in rows[-1]:
        return []
    base, last = rows[0], rows[-1]
    paired = last.get(f"{name}_change_{'high' if up > 0 else 'low'}")
    if paired is None:
        near, far = ("high", "low") if up > 0 else ("low", "high")
        best, least = last.get(f"{name}_{near}"), base.get(f"{name}_{far}")
        paired = None if best is None or least is None else best - least
    slack = {"cover": 0.03, "degenerate": DEGENERATE}.get(name, 0.0)
    if paired is None or paired * up >= -slack:
        return []
    return [f"{name} is worse than the base model's beyond chance: {base[name]:.3f} before, {last[name]:.3f} now"]
