"""The script for a GPU: every step finishes with tiny shapes and writes every row."""

import json
import subprocess
from pathlib import Path

import pytest
from running import ROOT

STEPS = ("card", "parity", "towers", "decode", "update", "service", "loop", "turns", "attention", "qlora")
NAMES = (
    "gpu_matmul_bf16", "gpu_parity_towers_fp16", "gpu_parity_decode_llava", "gpu_parity_decode_qwen2_5_vl",
    "gpu_parity_update_shared", "gpu_parity_update_rows", "gpu_clip_mfu", "gpu_self_check_decoding",
    "gpu_same_ids_alone_and_together", "gpu_swap_under_load_1", "gpu_trl_best_over_ours", "gpu_update_mfu",
    "gpu_trl_best_over_ours_pairs4", "gpu_service_over_tower_off", "gpu_service_over_tower_off_2_services",
    "gpu_loop_iteration_2", "gpu_trl_best_over_ours_qwen2_5_vl", "gpu_sampler_k4_adapter",
    "gpu_turns_rest", "gpu_turns_update", "gpu_turns_wake", "gpu_turns_arrival_gap", "gpu_attention_two_calls_160",
    "gpu_step_llava_4x8_adapter", "gpu_step_llava_4x8_plain",
    "gpu_sampler_k2_adapter_plain", "gpu_qlora_update_nf4", "gpu_peak_memory_over_trl",
    "gpu_peak_memory_over_trl_pairs4", "gpu_peak_memory_over_trl_qwen2_5_vl",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dry_run_writes_every_row(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "tools/gpu.sh", "--dry", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["failed"] == []
    assert set(NAMES) <= {row["name"] for row in result["rows"]}


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_runs_on_a_gpu(step: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if step == "qlora":
        pytest.importorskip("bitsandbytes")
    command = [ROOT / "tools/gpu.sh", "--dry", "--only", step, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads((tmp_path / "gpu.json").read_text())["failed"] == []
