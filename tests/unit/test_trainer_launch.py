"""A launcher's processes: their progress, and their immediate end, even if they print nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sightline.errors import Cancelled
from sightline_trainer.dpo.launch import _run


def command(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_progress_is_told_line_by_line_and_the_code_at_the_end(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    code = """print('hello'); print('{"done": 1, "total": 2}'); print('{"done": 2, "total": 2}'); raise SystemExit(3)"""
    assert _run(command(code), tmp_path / "log", lambda done, total: steps.append((done, total)), lambda: None) == 3
    assert steps == [(1, 2), (2, 2)]


def test_a_launcher_that_says_nothing_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    """Its processes may wait for one another forever, or for a Job of a cluster."""
    mark = tmp_path / "mark"
    code = f"""
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
pathlib.Path({str(mark)!r} + ".part").write_text(f"{{os.getpid()}} {{child.pid}}")
os.replace({str(mark)!r} + ".part", {str(mark)!r})
time.sleep(100)
"""

    def halt() -> None:
        if mark.exists():
            raise Cancelled("stopped")

    began = time.monotonic()
    with pytest.raises(Cancelled):
        _run(command(code), tmp_path / "log", lambda done, total: None, halt)
    assert time.monotonic() - began < 60
    for pid in mark.read_text().split():
        assert _gone(int(pid))


def _gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if not listed.stdout.strip() or listed.stdout.startswith("Z"):
            return True
        time.sleep(0.05)
    return False
