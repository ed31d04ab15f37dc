"""Write the READMEs' tables of families from the results of `make families` (benchmarks/results/families.json).

    python tools/family_tables.py    # `make families` ends with it

A table stands between two comments, `<!-- families: NAME -->` and `<!-- end of families -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/families.json"
READMES = {"sampler": ROOT / "services/sampler/README.md", "trainer": ROOT / "services/trainer/README.md"}
NAMES = {
    "llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "llava_onevision": "LLaVA-OneVision", "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL", "qwen3_5": "Qwen3.5", "internvl": "InternVL3",
    "gemma3": "Gemma 3", "gemma4": "Gemma 4", "smolvlm": "SmolVLM", "idefics3": "Idefics3", "paligemma": "PaliGemma",
    "glm46v": "GLM-4.6V", "mobilevlm": "MobileVLM V2", "mllama": "Mllama", "blip_2": "BLIP-2",
    "instructblip": "InstructBLIP", "minicpmv4_6": "MiniCPM-V 4.6", "molmo2": "Molmo2",
}  # fmt: skip
HEADS = {
    "sampler": ("family", "whole loop", "difference from the trainer's log-probs in the arrival gate"),
    "trainer": ("family", "whole loop", "rows", "worst pair", "gradient", "the picture matters"),
}
_MARKED = re.compile(r"(<!-- families: (\w+) -->\n).*?(<!-- end of families -->)", re.DOTALL)
Rows = Mapping[str, Mapping[str, Any]]


def rows(result: Path = RESULT) -> Rows:
    """The result's rows by name; none if there is no result."""
    if not result.exists():
        return {}
    return {row["name"]: row for row in json.loads(result.read_text())["rows"]}


def table(name: str, measured: Rows) -> str:
    """A table in Markdown, one line a family, in the order of `NAMES`."""
    head = HEADS[name]
    lines = [head, ("---",) * len(head), *(_line(name, family, measured) for family in NAMES)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _line(name: str, family: str, measured: Rows) -> tuple[str, ...]:
    blank = ("",) * (len(HEADS[name]) - 2)
    if refused := measured.get(f"{family}_refused"):
        reason, _, said = refused["detail"]["said"].partition(": ")
        return NAMES[family], f"refused at start, `{reason}`: {_short(said, 300)}", *blank
    whole = measured.get(f"{family}_whole_loop") or measured.get(f"{family}_runs")
    if whole is None:
        return NAMES[family], "not measured", *blank
    failed = whole["detail"].get("failed", {})
    if isinstance(failed, str):
        failed = {"lora float32": failed}
    fails = "; ".join(f"**fails** in {_mode(mode)}: {_short(why)}" for mode, why in failed.items())
    loops = whole["detail"].get("loops", {} if failed else {"lora float32": whole["detail"]})
    if not any(mode.endswith("float32") for mode in loops):
        return NAMES[family], fails, *blank
    exact = [loop for mode, loop in loops.items() if mode.endswith("float32")]
    half = [loop for mode, loop in loops.items() if mode.endswith("bfloat16")]
    modes = ", ".join(map(_mode, loops)) + (f"; {fails}" if fails else "")
    if name == "sampler":
        return NAMES[family], modes, _both("arrival_gap", exact, half)
    shared = "shared prefix" if all(loop["shared_prefix"] for loop in exact) else "plain"
    return (
        NAMES[family], modes, shared, _both("worst_pair_gap", exact, half),
        f"{max(loop['gradient_difference'] for loop in exact):.0e}",
        f"{min(loop['image_matters'] for loop in exact):.2g}",
    )  # fmt: skip


def _mode(mode: str) -> str:
    return mode.replace("lora", "LoRA")


def _short(why: str, most: int = 200) -> str:
    """The beginning of a reason; the result file has the whole text."""
    told = why.replace("|", "or")
    return told if len(told) <= most else f"{told[:most].rpartition(' ')[0]} ..."


def _both(figure: str, exact: list[dict[str, float]], half: list[dict[str, float]]) -> str:
    """The worst value in float32, and in bfloat16 if measured."""
    told = f"{max(loop[figure] for loop in exact):.0e}"
    return told + (f" ({max(loop[figure] for loop in half):.1g})" if half else "")


def filled(text: str, measured: Rows) -> str:
    """A README with new tables."""
    return _MARKED.sub(lambda found: found[1] + table(found[2], measured) + found[3], text)


def main() -> None:
    """Write the READMEs' tables."""
    measured = rows()
    for path in READMES.values():
        path.write_text(filled(path.read_text(encoding="utf-8"), measured), encoding="utf-8")


if __name__ == "__main__":
    main()
