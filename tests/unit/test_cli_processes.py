"""Directories in which a command's services work, and the end of these services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT
from sightline.errors import PreconditionFailed
from sightline_cli.credentials import Credentials, give
from sightline_cli.main import app
from sightline_cli.processes import Processes, in_use
from sightline_trainer.execute import lease
from sightline_trainer.runs import RunDirectory
from typer.testing import CliRunner, Result

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


def sightline(*arguments: object) -> Result:
    give(Credentials())
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_directory_has_the_services_of_one_command(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    with Processes(tmp_path):
        assert in_use(tmp_path)
        with (
            pytest.raises(PreconditionFailed, match="another command's services log to") as refused,
            Processes(tmp_path),
        ):
            pass
        assert refused.value.reason == "RUN_LEASED"
    with Processes(tmp_path):
        pass


@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_directory_in_which_another_process_works_is_left_as_it_is(command: str, tmp_path: Path) -> None:
    """`run` emptied the logs of the other's services; `demo` deleted the run."""
    run = RunDirectory(tmp_path / "run")
    (run.root / "services").mkdir(parents=True)
    (run.root / "recipe.yaml").write_text("{name: a, model: m, data: {train: a, test: b}}")
    (run.root / "services/scorer.log").write_text("theirs")
    asked = [command, *([ROOT / "recipes/clip_dpo.yaml"] if command == "run" else []), "--run", run.root]
    with lease(run):
        failed = sightline(*asked)
    assert (failed.exit_code, "another trainer works on" in failed.stderr) == (2, True)
    with Processes(run.root / "services"):
        failed = sightline("demo", "--run", run.root)
        assert (failed.exit_code, "works in" in failed.stderr) == (2, True)
    assert (run.root / "services/scorer.log").read_text() == "theirs"


def test_a_second_interrupt_ends_what_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It left the wait, and lost the first one's advice."""
    command = [sys.executable, "-c", STUBBORN]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert service.stdout is not None
    service.stdout.readline()
    wait = service.wait

    def interrupted(timeout: float | None = None) -> int:
        monkeypatch.setattr(service, "wait", wait)
        raise KeyboardInterrupt

    def command_line() -> None:
        with Processes(tmp_path) as processes:
            processes._running["stubborn"] = service
            monkeypatch.setattr(service, "wait", interrupted)
            raise KeyboardInterrupt("the advice")

    with pytest.raises(KeyboardInterrupt, match="the advice"):
        command_line()
    assert service.returncode == -signal.SIGKILL
    service.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(service.pid, 0)
