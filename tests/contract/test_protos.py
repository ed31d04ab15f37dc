"""Protos: they pass the linter, and the committed stubs equal the generator's."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_protos_pass_the_linter() -> None:
    subprocess.run([Path(sys.executable).with_name("buf"), "lint"], cwd=ROOT / "protos", check=True)


def test_no_released_proto_is_broken() -> None:
    """Callers in Go and Node, and those of 0.1.0 in Python, keep working."""
    command = [Path(sys.executable).with_name("buf"), "breaking", "--against", "released/0.1.0.binpb"]
    subprocess.run(command, cwd=ROOT / "protos", check=True)


def test_making_the_stubs_again_changes_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [ROOT / "protos/generate.sh", tmp_path], check=True, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    )
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*"))
    assert len(made) == 12
    for path in made:
        assert (tmp_path / path).read_text() == (ROOT / "client" / path).read_text(), f"run `make protos`: {path}"
    committed = {path.relative_to(ROOT / "client") for path in (ROOT / "client").rglob("*_pb2*.py*")}
    assert {path for path in committed if path.suffix != ".pyc"} == set(made)
