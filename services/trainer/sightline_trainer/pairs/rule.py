"""Rule: which candidates of one prompt are paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import Field

from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response

Fault = Callable[[Response, Response], str | None]
"""Why a pair of (chosen, rejected) is dropped, or None."""


def untied(fault: Fault) -> Fault:
    """The same, and `tie` for sides of equal reward, which are not a preference. A filter's fault comes first."""

    def find(chosen: Response, rejected: Response) -> str | None:
        return fault(chosen, rejected) or ("tie" if chosen.reward == rejected.reward else None)

    return find


@dataclass
class Picked:
    """A rule's result for one prompt's candidates: (chosen, rejected, weight), the faults of pairs that were dropped,
    and what was missing if there was nothing to pair."""

    pairs: list[tuple[Response, Response, float]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    lacking: str = ""

    def offer(self, chosen: Response, rejected: Response, fault: Fault, weight: float) -> bool:
        """Add the pair, or record its fault."""
        reason = fault(chosen, rejected)
        if reason is None:
            self.pairs.append((chosen, rejected, weight))
        else:
            self.dropped.append(reason)
        return reason is None


class Rule(Protocol):
    """Pairs the candidates of one prompt; see `RulePart`."""

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked: ...

    def rejected_images(self, prompt: Prompt, iteration: int) -> list[bytes]: ...


class RulePart(Part):
    """Settings of a rule; makes the pairs."""

    weight: float = Field(1.0, gt=0.0, description="Weight of its pairs in the loss; 2 counts as two pairs.")

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        """Pair the candidates of one prompt, which all have rewards and distinct texts."""
        raise NotImplementedError

    def rejected_images(self, prompt: Prompt, iteration: int) -> list[bytes]:
        """The encoded images that rejected sides answer to; empty: their own."""
        return []


class RankedRule(RulePart):
    """A rule that ranks candidates by reward."""

    among: list[str] = Field(
        default_factory=lambda: ["policy"], description="Sources whose candidates are ranked; empty: all."
    )

    def ranked(self, group: Sequence[Response]) -> list[Response]:
        """By decreasing reward; for equal rewards, the earlier candidate first."""
        mine = [scored for scored in group if not self.among or scored.source in self.among]
        return sorted(mine, key=lambda scored: (-scored.reward, scored.index))
