"""What a trainer knows of the test servers' model: log-probs by transformers alone, and the probes that it sends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from engine_mind import Mind
from sampler_models import png
from sightline.sampler import Probe

PROMPT = "Describe the picture."
IMAGE = png(0, 48)


def rendered(mind: Mind, prompt: str = PROMPT) -> str:
    """The prompt after the model's chat template."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    return str(mind.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def truth(mind: Mind, ids: Sequence[int], model: Any = None, *, image: bytes = IMAGE, prompt: str = PROMPT) -> Any:
    """Log-probs (n,) of a response."""
    inputs = mind.prepare(rendered(mind, prompt), [image], special=True)
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(ids)])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return np.array(mind.scores(model or mind.base, inputs)[length:], dtype=np.float64)


def probes(
    mind: Mind,
    model: Any,
    *,
    previous: Any = None,
    count: int = 4,
    image: bytes = IMAGE,
    prompt: str = PROMPT,
    seed: int = 0,
    noise: float = 0.0,
) -> list[Probe]:
    """Responses of the base model, with log-probs under `model` and under `previous` (the base model).

    Args:
        noise: standard deviation of what a trainer's number type adds.
    """
    found, random = [], np.random.default_rng(seed)
    inputs = mind.prepare(rendered(mind, prompt), [image], special=True)
    for number in range(count):
        ids = mind.draw(mind.base, inputs, seed=1000 * seed + number, limit=12, stop=[], logit_bias=mind.never).ids
        new, old = (
            truth(mind, ids, one or mind.base, image=image, prompt=prompt) + noise * random.standard_normal(len(ids))
            for one in (model, previous)
        )
        found.append(Probe(image, prompt, ids, new, old))
    return found
