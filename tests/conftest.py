"""Shared fixtures: the playground's weights, and real services on loopback, started once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import WEIGHTS, Services

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A scorer and a sampler as separate processes, started as in the demo."""
    from sightline_cli.processes import Processes

    with Processes(tmp_path_factory.mktemp("services")) as processes:
        processes.start("sampler", [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"])
        processes.start("scorer", [f"models.clip.source=local-dir:{WEIGHTS / 'clip'}"])
        sampler, scorer = processes.wait("sampler"), processes.wait("scorer")
        yield Services(scorer.grpc, sampler.grpc, {"scorer": scorer.metrics, "sampler": sampler.metrics})


@pytest.fixture(scope="session")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small datasets, `train` and `test`."""
    from sightline_playground.export import export

    root = tmp_path_factory.mktemp("playground")
    export(root / "train", split="align", count=64, seed=1)
    export(root / "test", split="test", count=32, seed=2)
    return root
