"""What each team uses: calls in flight, and texts and images per minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sightline.errors import InvalidInput, Overloaded

from sightline_chassis import metrics
from sightline_chassis.sections import TeamLimits


@dataclass(frozen=True)
class Cost:
    """What a request charges to its team's limits."""

    texts: int = 0
    images: int = 0


class Bucket:
    """A token bucket: holds a minute's allowance and fills evenly. After a pause a team may use a minute's allowance at
    once; over a longer time it gets the rate.

    Args:
        per_minute: the allowance; None is unlimited.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute or 0)
        self._filled = clock()

    def set(self, per_minute: int | None) -> None:
        """Change the allowance; past use still counts."""
        if per_minute != self.per_minute:
            used = (self.per_minute or 0) - self._fill()
            self.per_minute = per_minute
            self._level = max(0.0, (per_minute or 0) - used)

    def wait(self, amount: int) -> float:
        """Seconds until this many are available; 0 if they are."""
        if self.per_minute is None or amount <= 0:
            return 0.0
        return max(0.0, (amount - self._fill()) * 60 / self.per_minute)

    def take(self, amount: int) -> None:
        """Take this many, after a `wait` of 0."""
        if self.per_minute is not None:
            self._level = self._fill() - amount

    def _fill(self) -> float:
        now, most = self._clock(), float(self.per_minute or 0)
        self._level = min(most, self._level + (now - self._filled) * most / 60)
        self._filled = now
        return self._level


class Quota:
    """One team's use of this replica.

    Args:
        team: its name.
        limits: read at each use, since they may change.
        retry_after: seconds that a team with too many calls in flight should wait.
    """

    def __init__(self, team: str, limits: Callable[[], TeamLimits], retry_after: float) -> None:
        self._team, self._limits, self._retry_after = team, limits, retry_after
        self._running = 0
        now = limits()
        self._buckets = {"texts": Bucket(now.texts_per_minute), "images": Bucket(now.images_per_minute)}

    def begin(self) -> None:
        """Count a call; raises Overloaded if the team has too many in flight."""
        most = self._limits().concurrent
        if most is not None and self._running >= most:
            raise self._refuse("concurrent", f"{self._running} calls of team {self._team} are in flight", most)
        self._running += 1
        metrics.TEAM_INFLIGHT.labels(self._team).inc()

    def end(self) -> None:
        """The call has ended."""
        self._running -= 1
        metrics.TEAM_INFLIGHT.labels(self._team).dec()

    def charge(self, cost: Cost) -> None:
        """Charge the cost of a request, all or nothing.

        Raises:
            Overloaded: the allowance is used up for now; `retry_after` says until when.
            InvalidInput: it is over a whole minute's allowance.
        """
        amounts = {"texts": cost.texts, "images": cost.images}
        self._follow()
        for unit, amount in amounts.items():
            most = self._buckets[unit].per_minute
            if most is not None and amount > most:
                raise InvalidInput(
                    f"the request has {amount} {unit}; team {self._team} may use {most} a minute: send smaller ones",
                    reason="OVER_TEAM_LIMIT",
                    metadata={"team": self._team, "limit": str(most)},
                )
        for unit, amount in amounts.items():
            if wait := self._buckets[unit].wait(amount):
                raise self._spent(unit, wait)
        for unit, amount in amounts.items():
            if amount:
                self._buckets[unit].take(amount)
                metrics.TEAM_UNITS.labels(self._team, unit).inc(amount)

    def check(self) -> None:
        """Raise Overloaded if not even one text is left, which each request needs: this is known before decoding."""
        self._follow()
        if wait := self._buckets["texts"].wait(1):
            raise self._spent("texts", wait)

    def _follow(self) -> None:
        limits = self._limits()
        self._buckets["texts"].set(limits.texts_per_minute)
        self._buckets["images"].set(limits.images_per_minute)

    def _spent(self, unit: str, wait: float) -> Overloaded:
        most = self._buckets[unit].per_minute or 0
        return self._refuse(f"{unit}_per_minute", f"team {self._team} has used its {unit} of this minute", most, wait)

    def _refuse(self, limit: str, why: str, most: int, wait: float | None = None) -> Overloaded:
        metrics.refused_by_team_limit(self._team, limit)
        after = max(0.01, wait) if wait is not None else self._retry_after
        return Overloaded(
            f"{why} (limit: {limit} = {most}); try again in {after:.3g} s",
            reason=f"TEAM_{limit.upper()}",
            metadata={"team": self._team, "limit": str(most)},
            retry_after=after,
        )
