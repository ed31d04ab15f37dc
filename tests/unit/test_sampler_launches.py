"""The operations of a decoding step, kernels to launch on a GPU, do not grow with the number of prompts."""

import json
import subprocess
import sys

from running import ROOT


def test_64_prompts_need_at_most_twice_the_operations_of_one() -> None:
    # In a process of its own: benchmarks/ has modules of the same names as tests/.
    done = subprocess.run(
        [sys.executable, ROOT / "tests/decode_operations.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["1"] > 100
    assert counts["64"] <= 2 * counts["1"], counts
