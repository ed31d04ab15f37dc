"""Combinations of keys that no run can satisfy, found before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.dpo.loss_names import POVID
from sightline_trainer.pairs.image_contrast import ImageContrast
from sightline_trainer.pairs.rule import RankedRule
from sightline_trainer.pairs.rules import BestWorst, ReferenceAgainstRejected
from sightline_trainer.parts import NotImported
from sightline_trainer.rewards.clip import QUESTION
from sightline_trainer.sections import Dpo

Chosen = Mapping[str, Any]
"""The parts of one kind that a recipe has, by name."""

_SOURCES = {source for part in CANDIDATES.values() for source in part.writes}


def contradictions(candidates: Chosen, terms: Chosen, filters: Chosen, rules: Chosen, dpo: Dpo) -> Iterator[str]:
    """Sentences that name keys that contradict each other; empty if a run is possible."""
    if any(isinstance(part, NotImported) for kind in (candidates, terms, filters, rules) for part in kind.values()):
        return  # its behaviour is unknown: it is not imported here
    offered = {source for part in candidates.values() for source in part.writes}
    known = _SOURCES | offered
    if not offered:
        yield "candidates: no source is on; add one, such as policy"
    for name, rule in rules.items():
        named = _named(rule)
        for key, sources in named.items():
            if unknown := sorted(set(sources) - known):
                yield (
                    f"pairing.{name}.{key} names {', '.join(unknown)}, which no part writes; "
                    f"known are {', '.join(sorted(known))}"
                )
    if not any(_can_pair(rule, offered, bool(terms)) for rule in rules.values()):
        yield (
            f"pairing ({', '.join(rules) or 'none'}) can't make a pair of what candidates write "
            f"({', '.join(sorted(offered)) or 'nothing'}) and reward.terms rank ({', '.join(terms) or 'nothing'})"
        )
    values = {"reward", *terms, *([QUESTION] if "clip" in terms else [])}
    for name, part in filters.items():
        of = getattr(part, "of", "reward")
        if of not in values:
            yield f"filters.{name}.of is {of}, which has no value here; known are {', '.join(sorted(values))}"
        elif not terms and getattr(part, "min", 0.0) > 0.0:
            yield f"filters.{name}.min={part.min:g} drops everything: reward.terms has no term, so all rewards are 0"
    yield from _of_losses(rules, candidates, dpo)


def _named(rule: Any) -> dict[str, Any]:
    if isinstance(rule, RankedRule | ImageContrast):
        return {"among": rule.among}
    if isinstance(rule, ReferenceAgainstRejected):
        return {"chosen": rule.chosen, "rejected": rule.rejected}
    return {}


def _can_pair(rule: Any, offered: set[str], ranked: bool) -> bool:
    if isinstance(rule, ImageContrast):
        return bool(offered if not rule.among else offered & set(rule.among))
    if isinstance(rule, RankedRule):
        return ranked and bool(offered if not rule.among else offered & set(rule.among))
    return all(offered & set(sources) for sources in _named(rule).values())


def _of_losses(rules: Chosen, candidates: Chosen, dpo: Dpo) -> Iterator[str]:
    weights = {weight for rule in rules.values() for weight in _weights(rule)}
    if len(weights | {1.0}) > 1 and set(dpo.loss) & {"aot", "aot_unpaired"}:
        yield "dpo.loss: aot and aot_unpaired sort the batch, so pairing can't give weights"
    if "optimism" in dpo.loss and not any("policy" in part.writes for part in candidates.values()):
        yield "dpo.loss: optimism uses the policy's samples; add candidates.policy"
    if not set(dpo.loss) & set(POVID):
        return
    if all(isinstance(rule, BestWorst) for rule in rules.values()):
        yield "dpo.loss: POVID's need two rejected sides for a chosen one, and pairing.best_worst gives one"
    for name, rule in rules.items():
        if isinstance(rule, ReferenceAgainstRejected):
            wrong = [
                source
                for part in candidates.values()
                for source in part.writes
                for _ in range(getattr(part, "count", 1))
                if source in rule.rejected
            ]
            if len(wrong) < 2 and len(rules) == 1:
                yield f"dpo.loss: POVID's need two rejected sides for a chosen one; pairing.{name} finds {wrong}"
            if "povid_paper" in dpo.loss and len({rule.rejected[source] for source in wrong}) > 1:
                yield f"pairing.{name}.rejected: povid_paper has one term for both sides; weigh them by dpo.povid_betas"


def _weights(rule: Any) -> list[float]:
    return [rule.weight * weight for weight in getattr(rule, "rejected", {"": 1.0}).values()]
