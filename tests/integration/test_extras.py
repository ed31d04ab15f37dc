"""Each service's extra, installed alone in a fresh environment as in its image, starts that service."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import ROOT, WEIGHTS
from sightline_scorer.triton.installation import find

SETTINGS = {
    "scorer": [f"models.default.source={WEIGHTS / 'clip'}", f"triton.home={find().home}", "triton.threads=1"],
    "sampler": [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"],
    "trainer": ["runs=runs", f"recipes={ROOT / 'recipes'}"],
}
FOREIGN = {
    "scorer": {"trl", "peft", "datasets"},
    "sampler": {"trl", "tritonclient", "open_clip_torch"},
    "trainer": {"tritonclient"},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", SETTINGS)
def test_an_extra_alone_starts_its_service(service: str, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    venv = tmp_path / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    python = venv / "bin/python"
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, f"sightline[{service},s3,traces] @ {ROOT.as_uri()}"], check=True)
    listed = subprocess.run([uv, "pip", "list", "--python", python, "--format=json"], check=True, capture_output=True)
    assert FOREIGN[service].isdisjoint(package["name"] for package in json.loads(listed.stdout))

    announce, log = tmp_path / "at.json", tmp_path / "log"
    command = [venv / "bin/sightline", "serve", service]
    for setting in [*SETTINGS[service], f"server.announce={announce}"]:
        command += ["--set", setting]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        while not announce.exists():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)
        with grpc.insecure_channel(json.loads(announce.read_text())["health"]) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="readiness"), timeout=10
            )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
