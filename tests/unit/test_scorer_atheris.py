"""The coverage-guided fuzzer on image decoding, if it is installed: a number of inputs, starting from real files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT
from scorer_models import bomb, encoded, picture


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_no_bytes_bring_the_decoder_down(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, form in enumerate(("JPEG", "PNG", "GIF", "WEBP")):
        (corpus / str(number)).write_bytes(encoded(picture(24, 18, number), form))
    (corpus / "bomb").write_bytes(bomb())
    command = [
        sys.executable,
        str(ROOT / "tests/fuzz/images.py"),
        str(corpus),
        "-runs=20000",
        "-max_len=4096",
        "-seed=1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.glob("crash-*"))
    assert "Done 20000 runs" in done.stderr
