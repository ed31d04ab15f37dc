"""How many policies each team has staged and may have."""

from __future__ import annotations

from collections import Counter

from sightline.errors import Overloaded
from sightline_chassis import metrics
from sightline_chassis.teams import ANONYMOUS

from sightline_sampler.policies.loaded import LoadedPolicies


class TeamShares:
    """The teams' shares of the loaded policies. The base model and policies restored after a restart belong to no
    team."""

    def __init__(self, loaded: LoadedPolicies) -> None:
        self._loaded = loaded
        self._shown: set[str] = set()

    def refuse_more(self, team: str, most: int | None) -> None:
        """Raise Overloaded if the team has reached its maximum; None is unlimited."""
        found = self._counts()[team]
        if most is None or found < most:
            return
        name = team or ANONYMOUS
        metrics.refused_by_team_limit(name, "staged_policies")
        raise Overloaded(
            f"team {name} has {found} policies staged (limit: staged_policies = {most}): retire one (RetirePolicy), or "
            "have the limit raised in the tokens file",
            reason="TEAM_STAGED_POLICIES",
            metadata={"team": name, "limit": str(most)},
        )

    def show(self) -> None:
        """Export the counts as metrics."""
        counts = self._counts()
        for team in self._shown | counts.keys():
            metrics.TEAM_STORED.labels(team or ANONYMOUS, "policies").set(counts[team])
        self._shown = set(counts)

    def _counts(self) -> Counter[str]:
        return Counter(entry.team for entry in self._loaded.entries() if entry.team is not None)
