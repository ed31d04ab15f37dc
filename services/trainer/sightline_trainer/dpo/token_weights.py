"""Token weights: lp'_t = w_t lp_t, for the policy and the reference alike.

CHiP (Fu et al. 2025, arXiv 2501.16629) takes segments that were changed four times: what lies outside of runs of three
or more equal tokens of both sides. V-DPO (Xie et al. 2024, arXiv 2411.02712) trains on the suffix after the first
difference alone. With `shared: 0` it is DPO on the tokens of an edit, in the spirit of fine-grained supervision (Xu et
al. 2024, arXiv 2406.02756), which trains a reward model of tokens instead.

In CHiP's released code the unconditional reference (`uncond_ref_win_logp`), a sum already, is multiplied by every
token's weight and summed again. Here each row's reference is weighted token by token, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from sightline_trainer.dpo.method import TokenWeights

Weights = list[float]


def token_weights(chosen: Sequence[int], rejected: Sequence[int], settings: TokenWeights) -> tuple[Weights, Weights]:
    """A weight for each token of both sides.

    Args:
        chosen, rejected: token ids.
    """
    if settings.by == "none":
        return [1.0] * len(chosen), [1.0] * len(rejected)
    first, second = [settings.changed] * len(chosen), [settings.changed] * len(rejected)
    for a, b, size in _shared(list(chosen), list(rejected), settings):
        first[a : a + size] = second[b : b + size] = [settings.shared] * size
    return first, second


def _shared(chosen: list[int], rejected: list[int], settings: TokenWeights) -> list[tuple[int, int, int]]:
    """Runs that both sides have, as (begin in chosen, begin in rejected, length)."""
    if settings.by == "suffix":
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        return [(0, 0, same)]
    matches = SequenceMatcher(None, chosen, rejected, autojunk=False).get_matching_blocks()
    return [(match.a, match.b, match.size) for match in matches if match.size >= settings.run]
