"""How much memory is free: the machine's, within the container's limit."""

from pathlib import Path

import pytest
import torch
from sightline_sampler.engines.local.memory import free_bytes

CPU = torch.device("cpu")
GIB = 1 << 30


def machine(root: Path, *, free: int, limit: str | None = None, used: int = 0, files: int = 0) -> Path:
    """/proc and /sys of a machine, in bytes."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(
        f"MemTotal: {64 << 20} kB\nMemAvailable:   {free >> 10} kB\nHugePages_Total: 0\n"
    )
    if limit is not None:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon {used - files}\nfile {files}\ninactive_file {files}\n")
    return root


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"free": 10 * GIB}, 10 * GIB),
        ({"free": 10 * GIB, "limit": "max", "used": 2 * GIB}, 10 * GIB),
        ({"free": 10 * GIB, "limit": str(6 * GIB), "used": 4 * GIB}, 2 * GIB),
        ({"free": 10 * GIB, "limit": str(6 * GIB), "used": 4 * GIB, "files": 3 * GIB}, 5 * GIB),
        ({"free": 1 * GIB, "limit": str(6 * GIB), "used": 0}, 1 * GIB),
        ({"free": 10 * GIB, "limit": str(6 * GIB), "used": 7 * GIB}, 0),
    ],
)
def test_the_machines_within_the_containers(tmp_path: Path, facts: dict[str, int], expected: int) -> None:
    assert free_bytes(CPU, machine(tmp_path, **facts)) == expected  # type: ignore[arg-type]


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path) == 8 * GIB
    assert 0 < free_bytes(CPU) < 1 << 50
