"""VILA's three findings on the playground: one LVLM trained four ways, each from a Llama that first read captions.

    python benchmarks/vila.py                       15 minutes on a quiet core; finished models are kept
    python benchmarks/vila.py --out runs/vila

- plain: pictures with captions, all weights.
- frozen: the Llama stays as it was, and only the projector learns.
- documents: three of ten steps have documents of two pictures.
- text: one of five steps has captions without pictures.

900 steps after 450 on text are enough to tell the four apart, not to make a good captioner (the shipped one has 3,000).
One seed. A model is measured as the shipped one is (`playground/sightline_playground/measure.py`); its figures lie
outside the shipped one's bands, which `make` says. VILA: Lin et al., CVPR 2024, arXiv 2312.07533.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from harness import ROOT, Row, write

WAYS = {
    "plain": (),
    "frozen": ("--freeze-llm",),
    "documents": ("--interleaved", "0.3"),
    "text": ("--text-only", "0.2"),
}
_BUDGET = ("--steps", "900", "--text-steps", "450")
_FIGURES = {
    "sampled_chair_s": ("ratio", "lower"),
    "sampled_cover": ("ratio", "higher"),
    "second_cover": ("ratio", "higher"),
    "text_nats": ("nats a token", "lower"),
}


def numbers(way: str, out: Path) -> dict[str, float]:
    """The figures of one model; it is made if it is not there.

    Raises:
        CalledProcessError: it could not be made.
    """
    found = out / way / "metrics.json"
    if not found.exists():
        weights = str(ROOT / "playground/weights")
        command = [sys.executable, "-m", "sightline_playground", "make", "--out", str(out / way)]
        done = subprocess.run([*command, "--keep-scorer", weights, *_BUDGET, *WAYS[way]], check=False)
        if not found.exists():
            raise subprocess.CalledProcessError(done.returncode, done.args)
    measured: dict[str, float] = json.loads(found.read_text())["numbers"]
    return measured


def main() -> None:
    """Make what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/vila", help="directory of the models")
    options = parser.parse_args()
    rows = []
    for way in WAYS:
        measured = numbers(way, options.out)
        against = "" if way == "plain" else "vila_plain_<figure>"
        for name, (unit, better) in _FIGURES.items():
            rows.append(Row(f"vila_{way}_{name}", measured[name], unit, better, None, against))  # type: ignore[arg-type]
    write("vila", rows)


if __name__ == "__main__":
    main()
