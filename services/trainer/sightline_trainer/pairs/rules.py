"""Rule: which candidates of one prompt face each other."""

from __future__ import annotations

from collections.abc import Sequence

from sightline_trainer.pairs.filters import pair_fault
from sightline_trainer.recipe import Filters
from sightline_trainer.rollout import Scored


def best_worst(group: Sequence[Scored], filters: Filters) -> tuple[list[tuple[Scored, Scored]], str | None]:
    """The highest reward against the lowest; where that pair is filtered out, no other is tried but those of a
    fitting length: of all pairs of a fitting length, the one with the widest gap.

    Args:
        group: one prompt's candidates, all with a reward, no two with the same text.

    Returns:
        At most one (chosen, rejected) pair, and why there is none.
    """
    if len(group) < 2:
        return [], "too_few"
    ranked = sorted(group, key=lambda scored: (-(scored.score.reward or 0.0), scored.candidate.index))
    reason = pair_fault(ranked[0], ranked[-1], filters)
    if reason != "length_differs":
        return ([(ranked[0], ranked[-1])], None) if reason is None else ([], reason)
    fitting = [
        (chosen, rejected)
        for i, chosen in enumerate(ranked)
        for rejected in ranked[i + 1 :]
        if pair_fault(chosen, rejected, filters) is None
    ]
    if not fitting:
        return [], reason
    return [max(fitting, key=lambda pair: (pair[0].score.reward or 0.0) - (pair[1].score.reward or 0.0))], None
