"""Answers of an LVLM to one prompt per scene, by transformers' own generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline_playground.drawing import draw
from sightline_playground.llava_model import MAX_NEW_TOKENS
from sightline_playground.llava_training import chat
from sightline_playground.scenes import Scene


def answers(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    prompts: Sequence[str],
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 250,
) -> list[str]:
    """One answer per (scene, prompt); temperature 0 is greedy. Deterministic for a seed and a batch size."""
    import torch

    texts: list[str] = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(scenes), batch):
            inputs = processor(
                images=[draw(scene) for scene in scenes[start : start + batch]],
                text=[chat(prompt) for prompt in prompts[start : start + batch]],
                padding=True,
                return_tensors="pt",
            )
            how: dict[str, Any] = {"do_sample": False}
            if temperature > 0:
                how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            out = model.generate(**inputs, **how, max_new_tokens=MAX_NEW_TOKENS)
            texts += processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
