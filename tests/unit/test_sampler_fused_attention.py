"""The kernels for rows being decoded give the same numbers as plain operators. Triton interprets them here."""

import json
import os
import subprocess
import sys

import pytest
from running import ROOT


def test_kernels_give_the_same_as_plain_operators() -> None:
    pytest.importorskip("triton")
    # In a process of its own: Triton reads the variable when it is imported.
    done = subprocess.run(
        [sys.executable, ROOT / "tests/fused_rows.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    assert max(found.values()) < 1e-5, found
