"""A trainer service without a run uses little memory."""

import subprocess
import sys


def test_the_service_loads_no_torch_before_its_first_run() -> None:
    code = "import sys, sightline_trainer.server; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
