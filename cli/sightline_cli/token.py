"""`sightline token`: a new bearer token for a team, and the line for the service's tokens file."""

from __future__ import annotations

import json
import re
import sys

import typer
from sightline.errors import InvalidInput
from sightline_chassis.tokens import hash_of, make_token


def token(team: str, *, from_stdin: bool, as_json: bool = False) -> None:
    """Print a new token once, or the hash of a token from stdin.

    The token goes to stdout and everything else to stderr, so that it can be piped into a secret store; as JSON both
    are on stdout.

    Raises:
        InvalidInput: a tokens file would refuse the team's name, or stdin is empty.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", team) or team == "anonymous":
        raise InvalidInput(
            f"{team!r} is not a name of a team: lower-case letters, digits, - and _, at most 40", reason="OPTION"
        )
    secret = sys.stdin.readline().strip() if from_stdin else make_token()
    if len(secret) < 20:  # a short one could be guessed from its hash
        raise InvalidInput(
            "the token on stdin is shorter than 20 characters: let `sightline token` make one", reason="TOKEN_MALFORMED"
        )
    if as_json:
        typer.echo(json.dumps({"team": team, "hash": hash_of(secret)} | ({} if from_stdin else {"token": secret})))
        return
    if not from_stdin:
        typer.echo("the token, shown only now (give it to the team, keep no copy):", err=True)
        typer.echo(secret)
    typer.echo("\nfor the service's tokens file (auth.tokens_file):", err=True)
    typer.echo(f'teams:\n  {team}:\n    tokens: ["{hash_of(secret)}"]', err=not from_stdin)
