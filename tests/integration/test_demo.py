"""The main job as a newcomer runs it: it succeeds and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = [
    "iterations=1", "data.train=playground:align?count=32&seed=1", "data.test=playground:test?count=16&seed=2",
    "data.prompts_per_iteration=16", "sampling.candidates=4", "evaluation.prompts=16",
]  # fmt: skip


def start(run: Path, log: Path) -> subprocess.Popen[bytes]:
    """`sightline demo` on a small recipe, in its own process group."""
    command = [sys.executable, "-m", "sightline_cli", "demo", "--run", str(run)]
    for setting in SMALL:
        command += ["--set", setting]
    return subprocess.Popen(command, cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True)


def processes_naming(text: str) -> list[str]:
    """Command lines of living processes whose command line or environment names `text`."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (directory / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if int(directory.name) != os.getpid() and (text in command or text in environment):
            found.append(command)
    return found


def listening(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def announced(services: Path) -> list[Path]:
    """The announce files of the demo's services that serve."""
    files = (services / f"{name}.json" for name in ("scorer", "sampler", "trainer"))
    return [path for path in files if path.exists()]


def addresses(services: Path) -> list[str]:
    """All addresses that the demo's services announce."""
    said = [json.loads(path.read_text()) for path in announced(services)]
    return [entry[kind] for entry in said for kind in ("grpc", "health", "metrics")]


def wait_for_services(process: subprocess.Popen[bytes], services: Path, log: Path) -> list[str]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if len(announced(services)) == 3:
            return addresses(services)
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def clean(tmp_path: Path, ports: list[str]) -> None:
    deadline = time.monotonic() + 30
    while (left := processes_naming(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    deadline = time.monotonic() + 10
    while (open_ports := [port for port in ports if listening(port)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not open_ports


def test_demo_ends_with_its_metrics_and_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path / "demo", tmp_path / "log")
    ports = wait_for_services(process, tmp_path / "demo/services", tmp_path / "log")
    assert process.wait() == 0, (tmp_path / "log").read_text()
    rows = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert [(row["iteration"], row["policy_version"]) for row in rows] == [(0, 0), (1, 1)]
    assert "CHAIR_s" in (tmp_path / "log").read_text()
    clean(tmp_path, ports)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_demo_leaves_no_process_and_no_port(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path / "demo", tmp_path / "log")
    ports = wait_for_services(process, tmp_path / "demo/services", tmp_path / "log")
    time.sleep(1.0)
    process.send_signal(how)
    code = process.wait(timeout=60)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how], (tmp_path / "log").read_text()
    clean(tmp_path, ports)
