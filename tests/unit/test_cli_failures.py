"""The command line with unusable input: one paragraph, an exit code, and nothing lost."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path

import pytest
from running import ROOT
from scorer_models import encoded, picture
from sightline_chassis.tokens import hash_of
from sightline_cli import entry
from sightline_cli.credentials import Credentials, give
from sightline_cli.main import app
from typer.testing import CliRunner, Result

FIXTURES = ROOT / "tests/fixtures/eval"
CHAIR = ["--captions", str(FIXTURES / "chair_captions.jsonl"), "--truth", str(FIXTURES / "chair_truth.json")]


def sightline(*arguments: str) -> Result:
    give(Credentials())
    return CliRunner().invoke(app, arguments)


def test_a_place_that_cannot_be_written_is_named_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out.json"
    failed = sightline("eval", "chair", *CHAIR, "--json", str(out))
    assert failed.exit_code == 2
    assert failed.stderr == f"error: {out.parent}: File exists\n"
    with pytest.raises(FileExistsError):
        CliRunner().invoke(app, ["eval", "chair", *CHAIR, "--json", str(out), "--debug"], catch_exceptions=False)


def test_a_package_that_downloads_code_is_not_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes logs on some CPUs that `kernels` is missing; nothing of ours runs what it downloads."""
    monkeypatch.setattr(sys, "argv", ["sightline", "version"])
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    with pytest.raises(SystemExit):
        entry.main()
    assert not logger.isEnabledFor(logging.WARNING)


def test_a_demo_deletes_no_directory_but_a_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "thesis.tex").write_text("years")
    failed = sightline("demo", "--run", str(tmp_path))
    assert (failed.exit_code, "contains no run" in failed.stderr) == (2, True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = sightline("ui", str(tmp_path), "--port", str(port))
    assert (failed.exit_code, failed.stderr) == (
        2,
        f"error: 127.0.0.1:{port}: Address already in use; use --port 0 for a free one\n",
    )


def test_a_version_that_is_not_there_is_no_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "policies/v000001").mkdir(parents=True)
    failed = sightline("policies", "verify", str(tmp_path), "--version", "2")
    assert (failed.exit_code, failed.stderr) == (
        2,
        f"error: {tmp_path} has no policy 2: `sightline policies list {tmp_path}` shows them\n",
    )
    assert sightline("policies", "verify", str(tmp_path)).exit_code == 1


@pytest.mark.parametrize("count", ["0", "-4", "x"])
def test_scenes_are_counted_from_one(count: str) -> None:
    failed = sightline("eval", "run", "--sampler", "127.0.0.1:1", "--data", f"playground:test?count={count}")
    assert (failed.exit_code, "count" in failed.stderr) == (2, True)


@pytest.mark.parametrize("to", ["hub", "hub:"])
def test_an_export_to_the_hub_needs_a_name(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed = sightline("export", str(tmp_path), "--to", to)
    assert (failed.exit_code, "hub:ORG/NAME" in failed.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_scorer_that_is_away_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(picture(20, 20)))
    failed = sightline("score", str(tmp_path / "photo.png"), "a dog", "--scorer", "127.0.0.1:1")
    assert (failed.exit_code, "Connection refused" in failed.stderr) == (1, True)


def test_a_run_says_that_it_takes_no_token_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_TOKEN", "e" * 30)
    failed = sightline(
        "run", str(ROOT / "recipes/clip_dpo.yaml"), "--run", str(tmp_path / "run"), "--scorer", "dns:///scorer:1"
    )
    assert (failed.exit_code, "--token-file" in failed.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_token_for_machines() -> None:
    said = json.loads(sightline("token", "vision", "--json").stdout)
    assert said == {"team": "vision", "token": said["token"], "hash": hash_of(said["token"])}
    given = CliRunner().invoke(app, ["token", "vision", "--stdin", "--json"], input=said["token"])
    assert json.loads(given.stdout) == {"team": "vision", "hash": said["hash"]}
