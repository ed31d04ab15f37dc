"""The terminal, the locale and the descriptors that a command meets."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sightline_cli import entry, score
from sightline_cli.eval_output import bars
from sightline_trainer.display import Display
from sightline_trainer.events import Event
from sightline_trainer.files import write_json
from sightline_trainer.runs import RunDirectory

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def printed(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", f"from sightline_cli import entry\nentry._prepare_streams()\n{code}"],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


def test_an_ascii_terminal_gets_every_text_and_json_stays_json(tmp_path: Path) -> None:
    """It ended with "holds half of a character: give whole text, in UTF-8"."""
    text = "Käse 中 \U0001f600"
    code = f"import json; print({text!a}); print(json.dumps([{text!a}], ensure_ascii=False))"
    done = printed(code, tmp_path, **ASCII)
    assert (done.returncode, done.stderr) == (0, b"")
    plain, as_json = done.stdout.decode("ascii").splitlines()
    assert plain == r"K\u00e4se \u4e2d \ud83d\ude00"
    assert json.loads(as_json) == [text]
    assert printed(f"print({text!a})", tmp_path, PYTHONUTF8="1").stdout.decode().strip() == text


@pytest.mark.parametrize("command", [["score", "--scorer"], ["sample", "--sampler"]])
def test_a_locale_that_cannot_read_the_command_line_is_named(command: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    name, flag = command
    done = subprocess.run(
        [sys.executable, "-m", "sightline_cli", name, flag, "127.0.0.1:9", "a.png", "a Käse"],
        capture_output=True, cwd=tmp_path, env={**os.environ, **ASCII}, check=False,
    )  # fmt: skip
    told = done.stderr.decode("ascii")
    assert (done.returncode, "this locale has ascii: set PYTHONUTF8=1" in " ".join(told.split())) == (2, True), told


def test_the_next_file_does_not_become_a_closed_standard_output(tmp_path: Path) -> None:
    """What a library or a started service printed was written into a run's file."""
    inner = (
        "import os\nfrom sightline_cli import entry\nentry._prepare_streams()\n"
        "with open('pairs', 'w') as file:\n    os.system('echo noise')\n    file.write('pairs')\n"
    )
    subprocess.run(
        [sys.executable, "-c", "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])",
         sys.executable, "-c", inner],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    assert (tmp_path / "pairs").read_text() == "pairs"


def test_a_flag_may_name_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--run=~/runs/a`, which no shell expands, made a directory named ~."""
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--run=~/runs/a", "--set=model=~", "~/as quoted", "a=~/b", "--run=x~"]
    assert [entry._home(each) for each in given] == ["--run=/home/me/runs/a", *given[1:]]


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_a_failure_is_coloured_only_where_that_is_wanted(plain: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    code = "from sightline_cli.failures import _say; _say('error: no', 'red')"
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env={**environment, **plain}, check=True)
    told = os.read(ours, 1000)
    assert (b"\x1b[" in told, b"error: no" in told) == (not plain, True)
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TERM=dumb there was nothing to see until the end."""
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    with Display(2, Console(file=out, force_terminal=True, width=80)) as display:
        for done in range(1, 100):
            display(Event("sample", 1, done, 100))
        display(Event("pair", 1))
    assert out.getvalue().splitlines() == ["iteration 1/2: sampling and scoring candidates",
                                           "iteration 1/2: building pairs"]  # fmt: skip


def test_a_continued_run_shows_what_it_had_measured_before(tmp_path: Path) -> None:
    """It showed the new policies alone, without their change against the base model."""
    run = RunDirectory(tmp_path)
    common = {"pairs": 0, "seconds": 1}
    for iteration, chair in enumerate((0.5, 0.4)):
        row = {**common, "iteration": iteration, "policy_version": iteration, "chair_s": chair}
        write_json(run.iteration(iteration) / "evaluation.json", row)
    out = io.StringIO()
    with Display(2, Console(file=out, width=80), run.evaluations()) as display:
        for iteration, chair in ((1, 0.25), (2, 0.1)):  # the first again, by a changed recipe
            row = {**common, "iteration": iteration, "policy_version": iteration + 1, "chair_s": chair}
            display(Event("iteration", iteration, metrics=row))
    shown = out.getvalue().rpartition("─")[2]
    assert [line.split()[:4] for line in shown.strip().splitlines()] == [
        ["0", "v0", "0.500", "-"], ["1", "v2", "0.250", "-50%"], ["2", "v3", "0.100", "-80%"],
    ]  # fmt: skip


def test_a_log_gets_neither_bars_nor_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with bars(None) as progress:
        tell = progress("asking")
        for done in range(100):
            tell(done, 100)
    assert capsys.readouterr() == ("", "")


def test_a_text_is_shown_as_it_is_and_not_as_markup() -> None:
    """A path or caption with brackets or colons was cut, or ended the command."""
    texts = ["[red]a[/b] :cat:", "[/x]"]
    model = SimpleNamespace(name="clip", architecture="local-dir:/m/[x] [/y]", weights_digest="0" * 64)
    ones = np.ones(2, np.float32)
    result = SimpleNamespace(model=model, clip_score=ones, cosine=ones, logit=ones, parts=[1, 1], token_counts=[3, 3])
    out = io.StringIO()
    Console(file=out, width=120).print(score.table(result, texts))  # type: ignore[arg-type]
    for each in (*texts, model.architecture):
        assert each in out.getvalue()
