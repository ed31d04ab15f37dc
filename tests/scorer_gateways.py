"""Scorer gateways: `sightline serve scorer-http` as a process, for tests."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx


class Gateway:
    """`sightline serve scorer-http` as a process."""

    def __init__(self, directory: Path, target: str, *settings: str) -> None:
        announce = directory / "gateway.json"
        command = [sys.executable, "-m", "sightline_cli", "serve", "scorer-http"]
        for setting in (f"scorer.target={target}", f"http.announce={announce}", "log.level=warning", *settings):
            command += ["--set", setting]
        self.announce = announce
        self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        for _ in range(600):
            if announce.exists():
                break
            assert self.popen.poll() is None
            time.sleep(0.1)
        self.http = httpx.Client(base_url=f"http://{json.loads(announce.read_text())['http']}", timeout=30)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def stop(self) -> int:
        self.http.close()
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(30)
