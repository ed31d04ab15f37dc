"""Token weights: lp'_t = w_t lp_t, for the policy and the reference alike.

CHiP (Fu et al. 2025, arXiv 2501.16629) weighs changed segments four times: the tokens outside of runs of three or more
equal tokens of both sides. V-DPO (Xie et al. 2024, arXiv 2411.02712) trains only on the suffix after the first
difference. With `shared: 0` it is DPO on the tokens of an edit, in the spirit of fine-grained supervision (Xu et al.
2024, arXiv 2406.02756), which trains a reward model of tokens instead.

By sentence (FineSumFact, arXiv 2412.10689, has a verdict for each) a side learns from the sentences for which it is
chosen or rejected: the chosen side's good ones, the rejected side's bad ones.

In CHiP's released code the unconditional reference (`uncond_ref_win_logp`), a sum already, is multiplied by every
token's weight and summed again. Here each row's reference is weighted once, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from sightline_trainer.dpo.method import TokenWeights
from sightline_trainer.rewards.clip import sentences

Weights = list[float]
Decode = Callable[[Sequence[int]], str]


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
    """Runs that both sides share, as (start in chosen, start in rejected, length)."""
    if settings.by == "suffix":
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        return [(0, 0, same)]
    matches = SequenceMatcher(None, chosen, rejected, autojunk=False).get_matching_blocks()
    return [(match.a, match.b, match.size) for match in matches if match.size >= settings.run]


def sentence_weights(
    ids: Sequence[int], marks: Sequence[float], decode: Decode, settings: TokenWeights, *, chosen: bool
) -> Weights:
    """A weight for each token of one side, by the marks of its sentences.

    Args:
        marks: one for each sentence; without them, or with another number, all tokens count 1.
        decode: decodes token ids without special tokens.
        chosen: which side it is.
    """
    text = decode(ids)
    found = sentences(text)
    if not marks or len(marks) != len(found):
        return [1.0] * len(ids)
    ends, at = [], 0
    for sentence in found:
        at = text.index(sentence, at) + len(sentence)
        ends.append(at)
    weights = [settings.changed if (mark >= settings.bound) == chosen else settings.shared for mark in marks]
    made, place = [], 0
    for count in range(1, len(ids) + 1):
        length = len(decode(ids[:count]).rstrip())
        while place < len(ends) - 1 and length > ends[place]:
            place += 1
        made.append(weights[place])
    return made
