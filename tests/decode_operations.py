"""Print the operations of a decoding step by number of prompts: LLaVA's of 617 tokens, tiny layers, eight rows each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools/gpu"))

import decode
import models
import torch

if __name__ == "__main__":
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
    print(json.dumps(counts))
