"""A call to a service that is still loading its models waits and is answered."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running import WEIGHTS
from sightline import ONCE, RunClient, SamplerClient, ScorerClient
from sightline_cli.processes import Processes
from sightline_scorer.triton.installation import find

CALLS: dict[str, tuple[list[str], Callable[[str], object]]] = {
    "scorer": (
        [f"models.clip.source={WEIGHTS / 'clip'}", f"triton.home={find().home}", "triton.threads=1"],
        lambda at: ScorerClient(at, patience=ONCE).list_models(timeout=200).models[0].name,
    ),
    "sampler": (
        [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"],
        lambda at: SamplerClient(at, patience=ONCE).policies(timeout=200).active.version,
    ),
    "trainer": ([], lambda at: list(RunClient(at, patience=ONCE, timeout=200).list())),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_bound(port: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nobody listens")


@pytest.mark.field
@pytest.mark.parametrize("service", CALLS)
def test_a_call_during_the_start_is_answered(service: str, tmp_path: Path) -> None:
    """It ended with "timed out before receiving SETTINGS frame" if a client did not retry."""
    settings, call = CALLS[service]
    port = free_port()
    with Processes(tmp_path) as processes:
        runs = [f"runs={tmp_path}/runs"] if service == "trainer" else []
        processes.start(service, [*settings, *runs], port=port)
        wait_until_bound(port)
        assert call(f"127.0.0.1:{port}") in ("clip", 0, [])
