"""The teams that may call a service, from its tokens file.

teams:
  vision:
    tokens: ["sha256:..."]            # `sightline token` prints the line; two during a rotation
    limits: {concurrent: 8, texts_per_minute: 60000, images_per_minute: 6000}
  search:
    tokens: ["sha256:..."]
    methods: [Score, ListModels]      # default: all
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import pydantic
from pydantic import Field
from sightline.errors import PermissionDenied, PreconditionFailed, Unauthenticated

from sightline_chassis.sections import AuthSettings, Section, TeamLimits
from sightline_chassis.settings import SettingsError, read_yaml
from sightline_chassis.tokens import HASH_PATTERN, hash_of
from sightline_chassis.watched import Watched

ANONYMOUS = "anonymous"
"""The team of callers without a token."""

MAX_TEAMS = 200  # each is a value of a metric's label


class Team(Section):
    """One team."""

    tokens: list[Annotated[str, Field(pattern=HASH_PATTERN)]] = Field(
        min_length=1, max_length=20, description="Hashes of its tokens."
    )
    limits: TeamLimits = Field(default=TeamLimits(), description="What it may use on one replica.")
    methods: list[str] | None = Field(
        default=None, description='Names of the methods that it may call ("Score"); null: all.'
    )


class TeamsFile(Section):
    """The content of a tokens file."""

    teams: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")], Team] = Field(max_length=MAX_TEAMS)

    @pydantic.model_validator(mode="after")
    def _one_owner(self) -> Self:
        if ANONYMOUS in self.teams:
            raise ValueError(f"{ANONYMOUS} is the name of callers without a token; see auth.anonymous_limits")
        hashes = [token for team in self.teams.values() for token in team.tokens]
        if len(set(hashes)) != len(hashes):
            raise ValueError("a token's hash occurs twice: remove one, because a token belongs to one team")
        return self


@dataclass(frozen=True)
class Caller:
    """The caller: the team, and the hash of the token (empty for an anonymous caller)."""

    team: str
    hash: str = ""


class Teams:
    """Identifies the caller and its team's rights; follows changes of the tokens file.

    Raises:
        PreconditionFailed: the tokens file cannot be used.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings
        path = settings.tokens_file
        self._file = None if path is None else Watched("tokens file", [path], lambda: _read(path))

    def names(self) -> list[str]:
        """The current teams, including the anonymous one if such callers are served."""
        anonymous = [] if self._settings.needs_token else [ANONYMOUS]
        return [*self._teams(), *anonymous]

    def caller(self, headers: Sequence[str], method: str) -> Caller:
        """The caller that sent these `authorization` headers.

        Args:
            headers: values of all headers of that name.
            method: name of the method that is called.

        Raises:
            Unauthenticated: there is no token, or an unknown one.
            PermissionDenied: the team may not call the method.
        """
        if self._file is None:  # an unneeded token does no harm
            return Caller(ANONYMOUS)
        if not headers:
            if self._settings.needs_token:
                raise Unauthenticated(
                    "a token is needed: the client's `token=`, or the header `authorization: Bearer TOKEN`",
                    reason="TOKEN_MISSING",
                )
            return Caller(ANONYMOUS)
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated(
                "send the header `authorization: Bearer TOKEN` exactly once", reason="TOKEN_MALFORMED"
            )
        caller = self._owner(hash_of(token.strip()))
        methods = self._teams()[caller.team].methods
        if methods is not None and method not in methods:
            raise PermissionDenied(
                f"team {caller.team} may not call {method}: its tokens file lists {', '.join(methods) or 'nothing'}",
                reason="METHOD_NOT_ALLOWED",
                metadata={"team": caller.team, "method": method},
            )
        return caller

    def check(self, caller: Caller) -> None:
        """Raise Unauthenticated if the caller's token has been revoked since."""
        if caller.hash:
            self._owner(caller.hash)

    def limits(self, team: str) -> TeamLimits:
        """The team's limits; an unknown team has those of anonymous callers."""
        known = self._teams().get(team)
        return self._settings.anonymous_limits if known is None else known.limits

    def refresh(self) -> None:
        """Check the file even without calls."""
        self._teams()

    def _teams(self) -> dict[str, Team]:
        return {} if self._file is None else self._file.get()

    def _owner(self, given: str) -> Caller:
        found = ""
        for name, team in self._teams().items():
            for known in team.tokens:  # compare all, each in constant time: the time reveals nothing
                if hmac.compare_digest(known, given):
                    found = name
        if not found:
            raise Unauthenticated(
                "the token is not known to this service: it was revoked, or belongs to another service",
                reason="TOKEN_UNKNOWN",
            )
        return Caller(found, given)


def _read(path: Path) -> dict[str, Team]:
    try:
        return TeamsFile.model_validate(read_yaml(path)).teams
    except SettingsError as error:
        raise PreconditionFailed(f"auth.tokens_file: {error}", reason="TOKENS_FILE") from None
    except pydantic.ValidationError as error:  # without the values, which may be tokens
        why = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        raise PreconditionFailed(f"auth.tokens_file: {path}: {why}", reason="TOKENS_FILE") from None
