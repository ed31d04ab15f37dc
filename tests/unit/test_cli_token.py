"""`sightline token`: what it prints where, and that a tokens file accepts it."""

from pathlib import Path

import yaml
from sightline_chassis.sections import AuthSettings
from sightline_chassis.teams import Teams
from sightline_chassis.tokens import hash_of
from sightline_cli.main import app
from typer.testing import CliRunner


def test_the_token_alone_is_on_stdout_and_its_hash_fits_a_tokens_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["token", "vision"])
    assert result.exit_code == 0
    secret = result.stdout.strip()
    assert secret.startswith("sightline_")
    assert len(secret) > 50
    assert secret not in result.stderr
    path = tmp_path / "teams.yaml"
    path.write_text(result.stderr.partition("auth.tokens_file):")[2])
    teams = Teams(AuthSettings(tokens_file=path))
    assert teams.caller([f"Bearer {secret}"], "Score").team == "vision"
    assert CliRunner().invoke(app, ["token", "vision"]).stdout.strip() != secret


def test_a_token_from_stdin_is_hashed_and_not_shown() -> None:
    given = "an-older-token-of-ours"
    result = CliRunner().invoke(app, ["token", "search", "--stdin"], input=f"{given}\n")
    assert yaml.safe_load(result.stdout) == {"teams": {"search": {"tokens": [hash_of(given)]}}}
    assert given not in result.output


def test_bad_names_and_short_tokens_are_refused() -> None:
    for arguments, given in ((["token", "A Team"], ""), (["token", "anonymous"], ""), (["token", "a", "--stdin"], "x")):
        result = CliRunner().invoke(app, arguments, input=given)
        assert result.exit_code == 2
        assert "error:" in result.stderr
