"""What a framework gets for a text that could not be scored. There is no silent default: a 0 looks like a score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sightline.errors import InvalidInput, SightlineError

OnFailure: TypeAlias = Literal["raise", "drop", "value"]
"""raise: the error itself. drop: NaN, for a trainer that leaves such samples out. value: a number that you state."""


@dataclass(frozen=True)
class FailurePolicy:
    """What becomes of a failure.

    Args:
        on_failure: see `OnFailure`.
        value: with on_failure="value", and only then, the number.

    Raises:
        InvalidInput: on_failure is none of these, or does not go with `value`.
    """

    on_failure: OnFailure | None
    value: float | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in ("raise", "drop", "value"):
            raise InvalidInput(
                f"on_failure is {self.on_failure!r}: state what a text that cannot be scored is worth: raise, drop "
                "(NaN), or value with failure_value",
                reason="ON_FAILURE_UNSET",
            )
        if (self.on_failure == "value") != (self.value is not None):
            raise InvalidInput(
                "failure_value goes with on_failure=value, and on_failure=value needs it", reason="FAILURE_VALUE_MISFIT"
            )

    def reward(self, error: SightlineError) -> float:
        """The reward of a text that failed. Raises the error itself where the policy says so."""
        if self.on_failure == "raise":
            raise error
        return math.nan if self.value is None else self.value
