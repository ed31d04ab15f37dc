"""The gate of a service: who calls, what the team may use, and when the call may run."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from sightline.errors import Unauthenticated

from sightline_chassis import metrics
from sightline_chassis.admission import Admission
from sightline_chassis.quota import Cost, Quota
from sightline_chassis.sections import ServiceSettings, TeamLimits
from sightline_chassis.teams import ANONYMOUS, Caller, Teams

HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
INFRASTRUCTURE = (HEALTH, REFLECTION)

_caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)
_limits: contextvars.ContextVar[TeamLimits | None] = contextvars.ContextVar("limits", default=None)
_charge: contextvars.ContextVar[Callable[[Cost], None] | None] = contextvars.ContextVar("charge", default=None)


def charge(cost: Cost) -> None:
    """For a handler that reads a stream of requests: charges the cost of one to its team's limits.

    Raises:
        Overloaded: the allowance is used up for now; `retry_after` says until when.
        InvalidInput: it is over a whole minute's allowance.
        Unauthenticated: the token has been revoked since the call began.
    """
    if (take := _charge.get()) is not None:
        take(cost)


def calling_team() -> str:
    """The team of the call that this task serves; "" outside a call, and for callers that need no token."""
    caller = _caller.get()
    return "" if caller is None or caller.team == ANONYMOUS else caller.team


def calling_limits() -> TeamLimits:
    """The limits of the team whose call this task serves; no limits outside a call."""
    return _limits.get() or TeamLimits()


class Gate:
    """Admits calls.

    Args:
        settings: the service's.
        unadmitted: methods ("package.Service/Method") that skip admission.
        costs: what a method's request charges to its team's limits.

    Raises:
        PreconditionFailed: the tokens file cannot be used.
    """

    def __init__(
        self, settings: ServiceSettings, unadmitted: Iterable[str], costs: Mapping[str, Callable[[Any], Cost]]
    ) -> None:
        self._settings = settings
        self._admission = Admission(settings.admission)
        self._unadmitted = frozenset(unadmitted)
        self._costs = costs
        self._teams = Teams(settings.auth)
        self._quotas: dict[str, Quota] = {}
        self._shown: frozenset[str] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Check the tokens file even without calls, so that the metrics show its teams and drop removed ones."""
        self._teams.refresh()
        names = frozenset(self._teams.names())
        if names != self._shown:
            metrics.show_teams(names)
            metrics.forget_teams(self._shown - names)
            self._shown = names

    def identify(self, service: str, method: str, metadata: Sequence[tuple[str, Any]]) -> None:
        """Identify the caller from the call's headers; the call's task remembers it.

        Raises:
            Unauthenticated, PermissionDenied: see `Teams.caller`.
        """
        if self._is_open(service):
            return
        headers = [value for key, value in metadata if key == "authorization"]
        try:
            caller = self._teams.caller(headers, method)
            _caller.set(caller)
            _limits.set(self._teams.limits(caller.team))
        except Unauthenticated as error:
            metrics.UNAUTHENTICATED.labels(error.reason.removeprefix("TOKEN_").lower()).inc()
            raise

    def team(self) -> str:
        """The team of the call that this task serves; "" for health and reflection."""
        caller = _caller.get()
        return "" if caller is None else caller.team

    @contextlib.asynccontextmanager
    async def enter(self, service: str, name: str) -> AsyncIterator[Callable[[Any], None]]:
        """Hold a place of the team and a turn inside the block; yields the function that charges a decoded request to
        the team.

        Raises:
            Overloaded: the team or the service has too many calls, or the team has used up its minute.
        """
        caller = _caller.get()
        if service in INFRASTRUCTURE:
            yield _nothing
            return
        if caller is None:  # every call must be identified before
            raise Unauthenticated("the call was not identified")
        quota = self._quota(caller.team)
        cost = self._costs.get(name)

        def take(amount: Cost) -> None:
            self._teams.check(caller)
            quota.charge(amount)

        def charge_request(request: Any) -> None:
            if cost is not None:
                take(cost(request))

        if cost is not None:
            quota.check()
        quota.begin()
        _charge.set(take)
        try:
            if name in self._unadmitted:
                yield charge_request
            else:
                async with self._admission.turn(caller.team):
                    yield charge_request
        finally:
            quota.end()

    def _quota(self, team: str) -> Quota:
        if team not in self._quotas:
            self._quotas[team] = Quota(
                team, lambda: self._teams.limits(team), self._settings.admission.retry_after_seconds
            )
        return self._quotas[team]

    def _is_open(self, service: str) -> bool:
        return service == HEALTH or (service == REFLECTION and self._settings.auth.open_reflection)


def _nothing(_request: Any) -> None:
    """Health and reflection cost nothing."""
