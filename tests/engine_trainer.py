"""The trainer's view of the test servers' model: log-probs by transformers alone, and the probes that it sends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from engine_mind import Mind
from sampler_models import png
from sightline.sampler import Probe

PROMPT = "Describe the picture."
IMAGE = png(0, 48)
IMAGES = [IMAGE, png(7, 48)]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "there is a star ."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a red star ."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]},
]
"""A conversation about `IMAGES`, one in each of the user's turns."""


def rendered(mind: Mind, prompt: str | list[dict[str, Any]] = PROMPT) -> str:
    """The prompt or messages, rendered by the model's chat template."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    messages = asked if isinstance(prompt, str) else prompt
    return str(mind.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def truth(
    mind: Mind,
    ids: Sequence[int],
    model: Any = None,
    *,
    image: bytes | list[bytes] = IMAGE,
    prompt: str | list[dict[str, Any]] = PROMPT,
) -> Any:
    """Log-probs (n,) of a response to an image and a prompt, or to images and messages."""
    inputs = mind.prepare(rendered(mind, prompt), image if isinstance(image, list) else [image], special=True)
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
