"""Collect the results of all steps in one file: rows, and the reasons of failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import report  # noqa: F401  finds the harness
from harness import RESULTS, Row, _print, machine

ORDER = ("card", "parity", "towers", "service", "decode", "update", "loop", "attention", "turns", "qlora")


def main() -> None:
    """`collect.py OUT [--commit-to benchmarks/results]`: write OUT/gpu.json and print the table."""
    out = Path(sys.argv[1])
    entries = [
        {**json.loads(line), "step": step}
        for step in ORDER
        if (out / f"{step}.jsonl").exists()
        for line in (out / f"{step}.jsonl").read_text().splitlines()
    ]
    rows = [entry for entry in entries if "value" in entry]
    result = {
        "machine": machine(),
        "command": "tools/gpu.sh " + " ".join(sys.argv[2:]),
        "rows": [{k: v for k, v in row.items() if k != "step"} for row in rows],
        "failed": [entry for entry in entries if "error" in entry],
    }
    (out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    _print("gpu", [Row(**{k: v for k, v in row.items() if k != "step"}) for row in rows])
    for entry in result["failed"]:
        print(f"failed: {entry['name']}: {entry['error'][:300]}")
    print(f"written: {out}/gpu.json; copy what you want to keep to {RESULTS}/gpu.json")
    sys.exit(1 if any(step not in {entry["step"] for entry in rows} for step in _asked()) else 0)


def _asked() -> list[str]:
    return [step for step in sys.argv[2:] if step in ORDER]


if __name__ == "__main__":
    main()
