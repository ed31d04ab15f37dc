"""Rules: best and worst, i-th best and i-th worst, reference and rejected, all pairs, the k best and the k worst.

Sides of equal reward never make a pair, for any rule: the margin would be 0, and nothing would be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import stdev

from pydantic import Field

from sightline_trainer.pairs.filter import under
from sightline_trainer.pairs.rule import Fault, Picked, RankedRule, RulePart, untied
from sightline_trainer.records.response import Response


class BestWorst(RankedRule):
    """Pairs the highest reward with the lowest (CLIP-DPO, CSR).

    If only their lengths do not fit, the pair with fitting lengths and the widest gap is used instead.
    """

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        ranked, picked, fault = self.ranked(group), Picked(), untied(fault)
        if len(ranked) < 2:
            return Picked(lacking="too_few")
        if picked.offer(ranked[0], ranked[-1], fault, self.weight) or picked.dropped != ["length_differs"]:
            return picked
        fitting = [(best, worst) for best, worst in combinations(ranked, 2) if fault(best, worst) is None]
        if fitting:
            best, worst = max(fitting, key=lambda pair: pair[0].reward - pair[1].reward)
            picked = Picked([(best, worst, self.weight)])
        return picked


class IthBestIthWorst(RankedRule):
    """Pairs the i-th best with the i-th worst while they are far apart (OViP, arXiv 2505.15963).

    OViP's released rule, with its numbers as defaults, which are meant for its critic's marks from 0 to 10. With at
    most `small_group` candidates, the best is paired with the worst if it is `small_gap` better and at least `floor`.
    With more, pairs are made while the gap exceeds `factor` times the standard deviation (at least `min_std`) and the
    better one is at least `floor`. If there is no pair and the worst is at most `ceiling`, it is paired with the
    reference.
    """

    min_std: float = Field(1.5, ge=0.0, description="Minimum standard deviation to divide by.")
    factor: float = Field(2.0, ge=0.0, description="Gap over standard deviation.")
    floor: float = Field(6.0, description="Minimum reward of a chosen side.")
    ceiling: float = Field(5.0, description="Maximum reward of a side that is paired with the reference.")
    small_group: int = Field(4, ge=2, description="With at most this many candidates, pair only best and worst.")
    small_gap: float = Field(4.0, ge=0.0, description="Minimum gap of that pair.")
    max_pairs: int = Field(3, ge=1, description="Maximum number of pairs per prompt.")

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        ranked, picked, fault = self.ranked(group), Picked(), untied(fault)
        if not ranked:
            return Picked(lacking="too_few")
        worst = ranked[-1]
        if len(ranked) <= self.small_group:
            best = ranked[0]
            if not under(best.reward - worst.reward, self.small_gap) and not under(best.reward, self.floor):
                picked.offer(best, worst, fault, self.weight)
        else:
            bound = self.factor * max(self.min_std, stdev(scored.reward for scored in ranked))
            for best, other in zip(ranked, reversed(ranked), strict=True):
                if not under(bound, best.reward - other.reward) or under(best.reward, self.floor):
                    break
                picked.offer(best, other, fault, self.weight)
                if len(picked.pairs) == self.max_pairs:
                    break
        reference = next((scored for scored in group if scored.source == "reference"), None)
        if not picked.pairs and worst.reward <= self.ceiling and reference is not None:
            picked.offer(reference, worst, fault, self.weight)
        if not picked.pairs and not picked.dropped:
            picked.lacking = "too_close"
        return picked


class ReferenceAgainstRejected(RulePart):
    """Pairs a text that is right by its source with each that is wrong, regardless of rewards (POVID, BPO).

    Equal rewards are a tie here too, unless the recipe's reward has no term: then nothing was judged, and 0 is not a
    mark.
    """

    chosen: list[str] = Field(
        default_factory=lambda: ["reference", "right_answer"], description="Sources that are right."
    )
    rejected: dict[str, float] = Field(
        default_factory=lambda: {"injected": 1.0, "noised_image": 1.0, "wrong_answer": 1.0},
        description="Sources that are wrong, each with the weight of its pairs.",
    )

    judged: bool = Field(
        True, description="Drop a pair if both sides have equal rewards; false: only the sources decide."
    )

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        right = [scored for scored in group if scored.source in self.chosen]
        wrong = [scored for scored in group if scored.source in self.rejected]
        if not right or not wrong:
            return Picked(lacking="no_reference" if wrong else "no_rejected")
        picked = Picked()
        for good in right:
            for bad in wrong:
                judged = self.judged and (good.score.terms or bad.score.terms)
                weight = self.weight * self.rejected[bad.source]
                picked.offer(good, bad, untied(fault) if judged else fault, weight)
        return picked


class AllPairs(RankedRule):
    """Pairs every candidate with every one of lower reward (BPO's data, VLFeedback)."""

    max_pairs: int | None = Field(
        None, ge=1, description="Maximum number of pairs per prompt, widest gaps first; null: all."
    )

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        ranked, picked, fault = self.ranked(group), Picked(), untied(fault)
        unequal = [(one, other) for one, other in combinations(ranked, 2) if one.reward > other.reward]
        for one, other in sorted(unequal, key=lambda pair: pair[1].reward - pair[0].reward):
            if self.max_pairs is not None and len(picked.pairs) == self.max_pairs:
                break
            picked.offer(one, other, fault, self.weight)
        if not unequal:
            picked.lacking = "too_few"
        return picked


class TopBottom(RankedRule):
    """Pairs each of the k best with each of the k worst."""

    k: int = Field(2, ge=1, description="Number of candidates from each end.")

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        ranked, picked, fault = self.ranked(group), Picked(), untied(fault)
        if len(ranked) < 2:
            return Picked(lacking="too_few")
        k = min(self.k, len(ranked) // 2)
        for one in ranked[:k]:
            for other in reversed(ranked[-k:]):
                picked.offer(one, other, fault, self.weight)
        return picked


class EachGood(RankedRule):
    """Pairs every candidate that is good enough with the worst of the others (ILLUME, arXiv 2208.08241).

    ILLUME trains only on the good ones, by `dpo.loss: {sft: 1}`: the rejected side is then unused. If all are good, the
    worst of them is paired with the others.
    """

    min: float = Field(..., description="Minimum reward of a good candidate.")
    max_pairs: int | None = Field(
        None, ge=1, description="Maximum number of pairs per prompt, the best ones; null: all."
    )

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        ranked, picked, fault = self.ranked(group), Picked(), untied(fault)
        good = [scored for scored in ranked[:-1] if not under(scored.reward, self.min)]
        for one in good[: self.max_pairs]:
            picked.offer(one, ranked[-1], fault, self.weight)
        if not good:
            picked.lacking = "none_good" if len(ranked) > 1 else "too_few"
        return picked
