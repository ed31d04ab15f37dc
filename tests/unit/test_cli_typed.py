"""What people type: one paragraph on stderr, an exit code that shows whose fault it is, and no traceback or log."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from rich.console import Console
from running import ROOT
from scorer_models import encoded, picture
from sightline_cli import runs
from sightline_cli.credentials import Credentials, give
from sightline_cli.main import app
from sightline_trainer.display import draw, results_table
from typer.testing import CliRunner, Result

OURS = [str(ROOT / place) for place in ("client", "cli", "playground", *(f"services/{name}" for name in
        ("chassis", "scorer", "sampler", "trainer")))]  # fmt: skip
NOBODY = "127.0.0.1:1"
RECIPE = ROOT / "recipes/clip_dpo.yaml"
# What `pip install sightline` brings.
PACKAGES = """
grpc google protobuf numpy numpy.libs sightline
typer rich markdown_it mdurl pygments shellingham typing_extensions.py annotated_doc
pydantic pydantic_core annotated_types typing_inspection
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process with only the base install's packages (with `python -S`)."""
    packages = tmp_path_factory.mktemp("packages")
    for path in Path(np.__file__).parents[1].iterdir():
        name = path.name.partition("-")[0]
        if name in PACKAGES.split() and not path.name.startswith("__editable"):
            (packages / path.name).symlink_to(path)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *OURS])}


def sightline(*arguments: object, **environment: str) -> Result:
    give(Credentials())
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])


def process(*command: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=250,
        **options,
    )


def told(code: int, output: str, stderr: str) -> str:
    """The message; it must be one paragraph without a traceback or a log."""
    assert code in (1, 2), (code, output, stderr)
    assert "Traceback" not in output + stderr
    assert '"ts":' not in output + stderr
    assert "has no clear message yet" not in stderr
    assert 0 < len(stderr) < 1500
    assert stderr.startswith(("error: ", "sightline-", "Usage: ", "\n Usage: ", " " * 8)), stderr
    return stderr


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    command = command or typer.main.get_command(app)
    for name, below in getattr(command, "commands", {}).items():
        yield (*path, name)
        yield from commands(below, (*path, name))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory outside the repository, with a file of each wrong kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "directory").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "photo.png").write_bytes(encoded(picture(20, 20)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("{name: a, model: m, data: {train: a, test: b}}")
    (tmp_path / "run/events.jsonl").write_text('{"stage": "sample", "iteration": 1, "done": 0, "total": 8}\n')
    return tmp_path


def test_every_command_has_a_help_and_says_what_is_missing() -> None:
    for command in commands():
        helped = sightline(*command, "--help", COLUMNS="40")
        assert (helped.exit_code, "Usage: " in helped.output) == (0, True), command
        if command[0] in ("demo", "doctor", "version", "triton", "ui") or command[-1] == "list":  # they need nothing
            continue
        bare = sightline(*command, COLUMNS="80")
        assert bare.exit_code == 2, command
        assert "Usage: " in bare.output, command


@pytest.mark.parametrize("file", ["missing", "directory", "binary"])
@pytest.mark.parametrize(
    "command",
    [
        "run {}",
        f"run {RECIPE} --connections {{}}",
        "serve scorer --config {}",
        "serve scorer-http --config {}",
        "serve sampler --config {}",
        "serve trainer --config {}",
        f"sample {{}} hello --sampler {NOBODY}",
        f"score {{}} hello --scorer {NOBODY}",
        "report {}",
        "watch {}",
        "policies list {}",
        "policies show {} 1",
        "policies verify {}",
        "policies merge {} 1 --to new",
        "recipe show {}",
        "recipe explain {}",
        f"runs start {{}} --trainer {NOBODY}",
        f"scorer calibrate {{}} --scorer {NOBODY}",
        "eval chair --captions {0} --truth {0}",
        "eval pope --answers {0} --questions {0}",
        "eval amber --answers {0} --data {0}",
        "eval compare {0} {0}",
        f"eval run --sampler {NOBODY} --suite chair --data {{}}",
        f"--token-file {{}} score photo.png hello --scorer {NOBODY}",
        f"--tls-ca {{}} runs list --trainer {NOBODY}",
    ],
)
def test_a_file_of_the_wrong_kind_is_named(here: Path, command: str, file: str) -> None:
    failed = sightline(*command.format(file).split())
    said = told(failed.exit_code, failed.stdout, failed.stderr)
    assert NOBODY in said or (failed.exit_code, file in said) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        f"score photo.png hello --scorer {NOBODY}",
        f"sample photo.png hello --sampler {NOBODY}",
        f"policies list --sampler {NOBODY}",
        f"runs list --trainer {NOBODY}",
        f"runs watch some-run --trainer {NOBODY}",
        f"watch some-run --trainer {NOBODY}",
        f"scorer reload --scorer {NOBODY}",
    ],
)
def test_an_address_where_nobody_listens_is_told_in_seconds(here: Path, command: str) -> None:
    failed = sightline(*command.split())
    said = told(failed.exit_code, failed.stdout, failed.stderr)
    assert failed.exit_code == 1
    assert "Connection refused; is the service running, and at that address?" in said


@pytest.mark.parametrize("address", ["nonsense", "http://scorer:1", "::::"])
def test_what_is_no_address_is_refused(here: Path, address: str) -> None:
    for command in (["score", "photo.png", "hello"], ["run", RECIPE]):
        failed = sightline(*command, "--scorer", address)
        assert (failed.exit_code, address in told(2, "", failed.stderr)) == (2, True)
    checked = sightline("run", RECIPE, "--check", "--scorer", address)  # its findings are its output
    assert (checked.exit_code, address in checked.stdout, checked.stderr) == (2, True, "")


def test_a_recipe_file_that_is_not_there_is_told_before_the_trainer_is_asked(here: Path) -> None:
    (here / "empty.yaml").write_text("\n")
    for recipe, says in (("mine.yaml", "there is no file mine.yaml"), ("a/b", "there is no file a/b"),
                         ("empty.yaml", "empty.yaml is empty")):  # fmt: skip
        failed = sightline("runs", "start", recipe, "--trainer", NOBODY)
        assert (failed.exit_code, says in failed.stderr) == (2, True)


@pytest.mark.field
@pytest.mark.slow
def test_a_run_from_another_directory_names_the_model(here: Path) -> None:
    """It printed the sampler's log: kilobytes of JSON with a traceback."""
    failed = process("-m", "sightline_cli", "run", RECIPE, "--set", "model=playground/weights/llava", cwd=here)
    said = told(failed.returncode, failed.stdout, failed.stderr)
    assert failed.returncode == 2
    assert f"there is no directory playground/weights/llava below {here}" in said
    assert "its log: runs/" in said
    assert len(said) < 500


@pytest.mark.field
def test_a_model_that_nobody_knows_is_named_without_a_log(here: Path) -> None:
    """It printed the log of the scorer that it had started."""
    failed = process("-m", "sightline_cli", "score", "photo.png", "hello", "--model", "nosuch", cwd=here)
    said = told(failed.returncode, failed.stdout, failed.stderr)
    assert failed.returncode == 2
    assert "'nosuch'" in said
    assert len(said) < 500


@pytest.mark.field
@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_an_example_without_arguments_says_what_it_wants(example: str, tmp_path: Path, base: dict[str, str]) -> None:
    """They ended in a traceback, or needed torch for any message."""
    helped = process("-S", ROOT / "examples" / example, "--help", cwd=tmp_path, env=base)
    assert (helped.returncode, "usage: " in helped.stdout) == (0, True), helped.stderr
    bare = process(ROOT / "examples" / example, cwd=tmp_path)
    assert (bare.returncode, "Traceback" in bare.stderr, "required" in bare.stderr) == (2, False, True)


@pytest.mark.field
@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("--help", 0, "Usage: sightline"),
        ("version", 0, "0."),
        ("doctor --json", 0, "pip install 'sightline[scorer]'"),
        (f"score photo.png hello --scorer {NOBODY}", 1, "Connection refused"),
        (f"runs list --trainer {NOBODY}", 1, "Connection refused"),
        (f"run {RECIPE}", 2, "pip install 'sightline[scorer,sampler,trainer]'"),
        ("score photo.png hello --model ViT-B-32", 2, "pip install 'sightline[scorer]'"),
        ("serve trainer", 2, "pip install 'sightline[trainer]'"),
        ("report run", 2, "pip install 'sightline[report,trainer]'"),
    ],
)
def test_the_base_install_answers(here: Path, base: dict[str, str], command: str, code: int, says: str) -> None:
    """Every command printed a traceback."""
    done = process("-S", "-m", "sightline_cli", *command.split(), cwd=here, env=base)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_ends_a_command_quietly(here: Path) -> None:
    command = [sys.executable, "-m", "sightline_cli", "watch", "run", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert watching.stdout.readline().startswith("{")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        assert watching.stderr.read() == "interrupted\n"


@pytest.mark.parametrize("command", ["recipe explain dpo", "watch ended", "--help", "version"])
def test_who_reads_no_further_is_told_nothing(here: Path, command: str) -> None:
    (here / "run").rename(here / "ended")
    (here / "ended/run.json").write_text('{"id": "ended", "state": "succeeded"}')
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sightline_cli", *command.split()],
        stdout=write, stderr=subprocess.PIPE, text=True, cwd=here, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.stderr, done.returncode) == ("", 1 if command == "--help" else 141)  # the help is typer's own
    closed = process("-c", f"import os; os.close(1); os.execv({sys.executable!r}, "
                     f"[{sys.executable!r}, '-m', 'sightline_cli', *{command.split()!r}])", cwd=here)  # fmt: skip
    assert (closed.returncode, closed.stderr) == (0, "")


LONG = "clip_dpo-20260101-120000-with-a-long-name"
ROW = {
    "iteration": 12, "policy_version": 12, "chair_s": 0.123, "chair_i": 0.045, "cover": 0.678, "clip_score": 27.31,
    "mean_tokens": 123.4, "pairs": 12345, "seconds": 98765,
}  # fmt: skip


@pytest.mark.field
@pytest.mark.parametrize("columns", [80, 40])
def test_no_name_and_no_number_of_a_table_is_cut(columns: int, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """At 80 columns it printed "CHAI... CHAI...", and run ids that nobody could copy."""
    out = io.StringIO()
    draw(results_table([ROW, ROW]), Console(file=out, width=columns))
    monkeypatch.setenv("COLUMNS", str(columns))
    runs._table([{"id": LONG, "state": "failed", "recipe": "clip_dpo", "iteration": 1, "iterations": 30,
                  "policy_version": 4, "created": "2026-01-01T12:00:00Z", "error": "[DISK] no room"}])  # fmt: skip
    shown = out.getvalue() + capsys.readouterr().out
    assert "…" not in shown
    for word in (
        "CHAIR_s",
        "CHAIR_i",
        "CLIPScore",
        "27.31",
        "12345",
        LONG,
        "1/30",
        "2026-01-01 12:00:00",
        "[DISK] no room",
    ):
        assert re.search(rf"(^|\s){re.escape(word)}(\s|$)", shown), word
