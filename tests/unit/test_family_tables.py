"""The READMEs' tables of families equal the results of `make families`."""

import sys

import families
import pytest
from running import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from family_tables import NAMES, READMES, filled, rows, table

_FIGURES = {
    "arrival_gap": 3e-7, "worst_pair_gap": 9e-7, "gradient_difference": 4e-7, "image_matters": 0.51,
    "shared_prefix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", READMES)
def test_the_table_is_that_of_the_result(name: str) -> None:
    text = READMES[name].read_text(encoding="utf-8")
    assert f"<!-- families: {name} -->" in text
    assert filled(text, rows()) == text, "run tools/family_tables.py"


def test_every_family_of_the_tests_has_a_line() -> None:
    assert list(NAMES) == [*families.FAMILIES, *families.OTHERS]


def test_what_runs_what_fails_what_is_refused_and_what_nobody_measured() -> None:
    half = {"arrival_gap": 0.008, "worst_pair_gap": 0.01}
    measured = {
        "llava_whole_loop": {"value": 1.0, "detail": {"loops": {"lora float32": _FIGURES, "lora bfloat16": half}}},
        "gemma3_whole_loop": {"value": 0.0, "detail": {"loops": {}, "failed": {"full float32": "ROWS_DIFFER: a | b"}}},
        "gemma4_whole_loop": {
            "value": 0.0,
            "detail": {"loops": {"lora float32": _FIGURES}, "failed": {"lora bfloat16": "SAMPLED"}},
        },
        "mllama_refused": {"value": 1.0, "detail": {"said": "ARCHITECTURE_UNSUPPORTED: it looks"}},
        "molmo2_runs": {"value": 1.0, "detail": _FIGURES},
    }
    lines = table("trainer", measured).splitlines()
    plain = "| 9e-07 | 4e-07 | 0.51 |"
    shown = "| 9e-07 (0.01) | 4e-07 | 0.51 |"
    assert f"| LLaVA-1.5 | LoRA float32, LoRA bfloat16 | shared prefix {shown}" in lines
    assert "| Gemma 3 | **fails** in full float32: ROWS_DIFFER: a or b |  |  |  |  |" in lines
    assert f"| Gemma 4 | LoRA float32; **fails** in LoRA bfloat16: SAMPLED | shared prefix {plain}" in lines
    assert "| Mllama | refused at start, `ARCHITECTURE_UNSUPPORTED`: it looks |  |  |  |  |" in lines
    assert "| Molmo2 | LoRA float32 | shared prefix | 9e-07 | 4e-07 | 0.51 |" in lines
    assert "| Qwen2-VL | not measured |  |  |  |  |" in lines
    assert "| LLaVA-1.5 | LoRA float32, LoRA bfloat16 | 3e-07 (0.008) |" in table("sampler", measured).splitlines()
