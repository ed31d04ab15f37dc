"""Rewards of candidates. Each term is a part with a registry name."""

from collections.abc import Mapping
from typing import Final

from sightline_trainer.rewards.ask import Ask
from sightline_trainer.rewards.clip import Clip
from sightline_trainer.rewards.detected import Detected
from sightline_trainer.rewards.length import Length
from sightline_trainer.rewards.logprob_contrast import LogprobContrast
from sightline_trainer.rewards.picked import HumanPicks
from sightline_trainer.rewards.policy_logprob import PolicyLogprob
from sightline_trainer.rewards.term import TermPart
from sightline_trainer.rewards.truth import Truth

REWARDS: Final[Mapping[str, type[TermPart]]] = {
    "clip": Clip,
    "policy_logprob": PolicyLogprob,
    "logprob_contrast": LogprobContrast,
    "length": Length,
    "truth": Truth,
    "ask": Ask,
    "detected": Detected,
    "picked": HumanPicks,
}
"""Terms by name."""
