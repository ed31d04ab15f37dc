"""Guards third-party filters and rules: if one raises, nothing passes, and the counts say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from sightline.errors import PreconditionFailed

from sightline_trainer.open_parts import Failures
from sightline_trainer.pairs.filter import Filter
from sightline_trainer.pairs.rule import Fault, Picked, Rule
from sightline_trainer.parts import Parts
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response

FILTER_FAILED, RULE_FAILED = "filter_failed", "rule_failed"


def filters_of(parts: Parts) -> Mapping[str, Filter]:
    """A recipe's filters, in the order in which they are applied."""
    theirs = parts.opened()
    return {name: GuardedFilter(name, part) if name in theirs else part for name, part in parts.chosen().items()}


def rules_of(parts: Parts) -> Mapping[str, Rule]:
    """A recipe's rules."""
    theirs = parts.opened()
    return {name: GuardedRule(name, part) if name in theirs else part for name, part in parts.chosen().items()}


class GuardedFilter:
    """A filter whose failure counts as a fault."""

    def __init__(self, name: str, part: Filter) -> None:
        self.name = name
        self.part = part
        self._failures = Failures(f"the filter {name}")

    def prompt_fault(self, prompt: Prompt) -> str | None:
        """As the filter's."""
        return self._fault(lambda: self.part.prompt_fault(prompt))

    def group_fault(self, group: Sequence[Response]) -> str | None:
        """As the filter's."""
        return self._fault(lambda: self.part.group_fault(group))

    def candidate_fault(self, scored: Response) -> str | None:
        """As the filter's."""
        return self._fault(lambda: self.part.candidate_fault(scored))

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        """As the filter's."""
        return self._fault(lambda: self.part.pair_fault(chosen, rejected))

    def _fault(self, ask: Callable[[], object]) -> str | None:
        try:
            found = ask()
        except (Exception, SystemExit):
            self._failures.tell("raised", "raised: what it should judge is dropped", traceback=True)
            return FILTER_FAILED
        if found is None or (isinstance(found, str) and found):
            return found
        self._failures.tell("answer", f"gave {found!r:.80}: it must give a word that says why to drop, or None")
        return FILTER_FAILED


class GuardedRule:
    """A rule whose failure gives no pairs."""

    def __init__(self, name: str, part: Rule) -> None:
        self.name = name
        self.part = part
        self._failures = Failures(f"the rule {name}")

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        """As the rule's; a pair of foreign candidates, of one with itself or without weight is a failure too."""
        try:
            picked = self.part.pick(group, fault)
            for chosen, rejected, weight in picked.pairs:
                known = any(chosen is each for each in group) and any(rejected is each for each in group)
                if not known or chosen is rejected or not (math.isfinite(weight) and weight > 0):
                    raise ValueError(f"the rule pairs {chosen.index} and {rejected.index} with weight {weight}")
        except (Exception, SystemExit):
            self._failures.tell("failed", "failed: no pairs", traceback=True)
            return Picked(lacking=RULE_FAILED)
        return picked

    def rejected_images(self, prompt: Prompt, iteration: int) -> list[bytes]:
        """As the rule's.

        Raises:
            PreconditionFailed: RULE_FAILED: it raised, so its pairs are unknown.
        """
        try:
            return self.part.rejected_images(prompt, iteration)
        except (Exception, SystemExit) as error:
            raise PreconditionFailed(
                f"the rule {self.name} has no images for {prompt.id}: {type(error).__name__}: {error}",
                reason="RULE_FAILED",
            ) from error
