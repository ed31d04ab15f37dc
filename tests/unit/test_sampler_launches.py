"""The operations of a decoding step, kernels to launch on a GPU, do not grow with the number of prompts."""

from __future__ import annotations

import sys

import torch
from running import ROOT

sys.path += [str(ROOT / "tools/gpu"), str(ROOT / "benchmarks")]  # behind tests/, which has a families.py too

import decode
import models


def test_64_prompts_need_at_most_twice_the_operations_of_one() -> None:
    """LLaVA's prompts of 617 tokens, tiny layers; eight candidates of each prompt."""
    model = models.build(models.llava_config(dry=True), "cpu", torch.float32)
    base = models.base(model)
    counts = {}
    for prompts in (1, 64):
        lane = decode.lane(base, prompts=prompts, rows=8, tokens=4)
        with torch.inference_mode():
            lane.sample()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                lane.forward(model)
        assert len(lane) == 8 * prompts
        counts[prompts] = sum(event.name.startswith("aten::") for event in profile.events())
    assert counts[1] > 100
    assert counts[64] <= 2 * counts[1], counts
