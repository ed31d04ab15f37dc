"""`make families` can be stopped in the middle of a run and leaves no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ROOT


@pytest.mark.slow
def test_sigterm_ends_it_in_the_middle_of_a_loop(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, ROOT / "benchmarks/families.py", "llava", "--results", tmp_path]
    with (tmp_path / "log").open("wb") as log:
        begun = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)}, start_new_session=True
        )
    try:
        while not any(scratch.glob("families-*/llava/*/run/iterations/0001/candidates")):
            assert begun.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        begun.send_signal(signal.SIGTERM)
        assert begun.wait(60) == 128 + signal.SIGTERM
    finally:
        if begun.poll() is None:
            os.killpg(begun.pid, signal.SIGKILL)
    assert not list(scratch.glob("families-*"))
    assert not (tmp_path / "families.json").exists()
