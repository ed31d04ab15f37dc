"""The reward that a framework gets for a text that could not be scored. No silent default: a 0 looks like a score."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sightline.errors import InvalidInput, PermissionDenied, SightlineError, Unauthenticated, Unsupported

logger = logging.getLogger(__name__)

OnFailure: TypeAlias = Literal["raise", "drop", "value"]
"""raise: raise the error. drop: NaN, for a trainer that skips such samples. value: a number that you choose."""


_OF_EVERY_ROW = frozenset(
    {"MODEL_NOT_FOUND", "NOT_CALIBRATED", "NO_PROBABILITY", "MODEL_IS_ENSEMBLE", "PHRASES_UNASKED", "COLUMN_MISSING"}
    | {"MODEL_UNKNOWN", "KIND_UNKNOWN", "UNIT_UNKNOWN", "LONG_TEXT_UNKNOWN", "AGGREGATION_UNKNOWN", "OPTION_UNKNOWN"}
    | {"TIMEOUT_INVALID", "TARGET_MALFORMED"}
)


def concerns_every_row(error: SightlineError) -> bool:
    """Whether the call itself is wrong: then every row fails, and the batch ends for any `on_failure`."""
    return error.reason in _OF_EVERY_ROW or isinstance(error, Unauthenticated | PermissionDenied | Unsupported)


def log_failures(errors: Sequence[SightlineError], total: int) -> None:
    """Log how many of `total` rows have no reward, by reason, and the last error's message; nothing if all have one."""
    if errors:
        counts = dict(Counter(error.reason for error in errors))
        logger.warning("no reward for %d of %d rows %s; the last: %s", len(errors), total, counts, errors[-1])


class FailureCounts:
    """Failures of calls for single rows, logged at the 1st, 2nd, 4th, 8th ... of each reason. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, error: SightlineError) -> None:
        """Count a failure; log it if it is the 1st, 2nd, 4th ... of its reason."""
        with self._lock:
            self._counts[error.reason] += 1
            count = self._counts[error.reason]
        if count & (count - 1) == 0:
            logger.warning("no reward for %d rows with %s so far; the last: %s", count, error.reason, error)


@dataclass(frozen=True)
class FailurePolicy:
    """How to handle a failure.

    Args:
        on_failure: see `OnFailure`.
        value: the number; only with on_failure="value".

    Raises:
        InvalidInput: on_failure is unknown, or does not match `value`.
    """

    on_failure: OnFailure | None
    value: float | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in ("raise", "drop", "value"):
            raise InvalidInput(
                f"on_failure is {self.on_failure!r}: choose what happens to a text that cannot be scored: raise, "
                f"drop (NaN), or value with failure_value",
                reason="ON_FAILURE_UNSET",
            )
        if (self.on_failure == "value") != (self.value is not None):
            raise InvalidInput(
                "set failure_value and on_failure=value together, or neither", reason="FAILURE_VALUE_MISFIT"
            )

    def reward(self, error: SightlineError) -> float:
        """The reward for a text that could not be scored.

        Raises:
            SightlineError: the error itself, if `on_failure` says so or every row fails.
        """
        if self.on_failure == "raise" or concerns_every_row(error):
            raise error
        return math.nan if self.value is None else self.value
