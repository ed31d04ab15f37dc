"""Filter: which candidates may stand in a pair, and which pairs teach something.

CLIP-DPO's rules (arXiv 2408.10433): a score floor, a CLIPScore gap of at least 2, lengths that are "not too
different". Thresholds other than the gap are not published; ours are keys of the recipe.
"""

from __future__ import annotations

from sightline_trainer.recipe import Filters
from sightline_trainer.rollout import Scored


def candidate_fault(scored: Scored, filters: Filters) -> str | None:
    """Why a candidate is dropped, or None."""
    candidate, reward = scored.candidate, scored.score.reward
    if reward is None:
        return "unscored"
    if filters.finished_only and candidate.finish_reason != "eos":
        return "unfinished"
    if len(candidate.token_ids) < filters.min_tokens:
        return "too_short"
    if reward < filters.min_score:
        return "low_score"
    return None


def pair_fault(chosen: Scored, rejected: Scored, filters: Filters) -> str | None:
    """Why a pair is dropped, or None."""
    assert chosen.score.reward is not None
    assert rejected.score.reward is not None
    if chosen.candidate.text == rejected.candidate.text:
        return "duplicate"
    if chosen.score.reward - rejected.score.reward < filters.min_gap:
        return "small_gap"
    lengths = sorted((len(chosen.candidate.token_ids), len(rejected.candidate.token_ids)))
    if lengths[1] > filters.max_length_ratio * lengths[0]:
        return "length_differs"
    return None
